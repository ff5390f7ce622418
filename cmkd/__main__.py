"""`python -m cmkd`, and `accelerate launch -m cmkd`: the command `cmkd`."""

from cmkd.commands import main

if __name__ == "__main__":
    main()
