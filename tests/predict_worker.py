"""`cmkd predict` with smaller pieces and chunks, so that a test need not write hours of sound.

python predict_worker.py pieces.PIECE_SECONDS=20 plan.CHUNK_SOURCES=3 -- SOURCE --model M --output O
"""

import importlib
import sys

from cmkd.commands import main

if __name__ == "__main__":
    end = sys.argv.index("--")
    for setting in sys.argv[1:end]:
        name, value = setting.split("=")
        module, variable = name.split(".")
        setattr(
            importlib.import_module(f"cmkd.predict.{module}"), variable, float(value) if "." in value else int(value)
        )
    main(["predict", *sys.argv[end + 1 :]])
