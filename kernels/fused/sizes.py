"""Sizes of grids and tiles. Triton has these functions for kernels; called by the host they cost it microseconds."""


def cdiv(number: int, size: int) -> int:
    """How many pieces of `size` cover `number`."""
    return -(-number // size)


def next_power_of_2(number: int) -> int:
    """The smallest that is not below `number` ≥ 1."""
    return 1 << (number - 1).bit_length()
