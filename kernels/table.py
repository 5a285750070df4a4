"""The ops that several backends serve: one row each, under the name of its file."""

from deltalm_ds.kernels import attention, dropout, embedding, feed_forward, layer_norm, linear_cross_entropy, top_k
from deltalm_ds.kernels.dispatch import Op

OPS: dict[str, Op] = {
    "attention": attention.OP,
    "layer_norm": layer_norm.OP,
    "feed_forward": feed_forward.OP,
    "embedding": embedding.OP,
    "linear_cross_entropy": linear_cross_entropy.OP,
    "dropout": dropout.OP,
    "top_k": top_k.OP,
}
