"""How exactly PyTorch's matrix products sum."""

import torch


def sum_products_in_float32() -> None:
    """Partial sums of products of 16 bits stay float32 on GPUs, as everything here expects.

    By default cuBLAS may split a long sum (of tokens in a weight's gradient, of the vocabulary in the loss) and round
    the parts to 16 bits before it adds them. Holds for the process.
    """
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
