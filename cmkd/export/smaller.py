"""stub while fp32 is tried"""


def half(m):
    return m


def int8(m):
    return m


def verify_half(g, m):
    return 0.0


def verify_int8(g, m):
    return 0.0
