"""The packed model against a padded one in plain PyTorch, torch's own decoder layer, and itself step by step."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.layers import Embedding
from deltalm_ds.model.packing import PackedSequences

V, PAD, MAX_POSITIONS = 101, 1, 12


def make_model(seed=0, **changes):
    """A float64 model with every parameter random, so that no bias or norm can be forgotten."""
    config = DeltaLMConfig(
        **{
            "vocabulary_size": V,
            "hidden_size": 12,
            "ffn_size": 20,
            "num_heads": 3,
            "num_encoder_layers": 2,
            "num_decoder_blocks": 2,
            "max_positions": MAX_POSITIONS,
            "dropout": 0.0,
            **changes,
        }
    )
    torch.manual_seed(seed)
    model = DeltaLM(config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn_like(parameter)
            assert name == "token_embedding.weight" or parameter.abs().max() > 0
    return model


def make_batch(lengths, seed=0):
    """Ids of sources and targets of the given (source, target) lengths, as lists."""
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randint(2, V, (length,), generator=generator).tolist() for length in pair) for pair in lengths]


def packed(batch):
    sources, targets = zip(*batch, strict=True)
    target_input = [[2, *target[:-1]] for target in targets]
    labels = torch.tensor([token for target in targets for token in target])
    return PackedSequences.from_sequences(sources), PackedSequences.from_sequences(target_input), labels


class PaddedModel:
    """DeltaLM as one would write it down: padded on the right, masks, torch.nn.functional alone."""

    def __init__(self, weights, config):
        self.weights, self.config = weights, config

    def linear(self, name, x):
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, name, x):
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], 1e-5)

    def embed(self, name, tokens):
        x = F.embedding(tokens, self.weights["token_embedding.weight"])
        x = x + self.weights[f"{name}.positions"][: tokens.shape[1]]
        return self.norm(f"{name}.norm", x) if self.config.embedding_norm else x

    def attend(self, q, k, v, visible):
        """q: [B, Lq, M]; k, v: [B, Lk, M]; visible: [B, Lq, Lk] bool."""
        q, k, v = (x.unflatten(2, (self.config.num_heads, -1)) for x in (q, k, v))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(~visible[:, None], -math.inf).softmax(-1)
        return torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)

    def self_attention(self, name, x, visible):
        q, k, v = self.linear(f"{name}.query_key_value", x).chunk(3, dim=2)
        return self.norm(f"{name}.norm", x + self.linear(f"{name}.output", self.attend(q, k, v, visible)))

    def cross_attention(self, name, x, memory, visible):
        k, v = self.linear(f"{name}.key_value", memory).chunk(2, dim=2)
        out = self.attend(self.linear(f"{name}.query", x), k, v, visible)
        return self.norm(f"{name}.norm", x + self.linear(f"{name}.output", out))

    def ffn(self, name, x):
        return self.norm(f"{name}.norm", x + self.linear(f"{name}.output", F.gelu(self.linear(f"{name}.input", x))))

    def hidden(self, source, target_input):
        """source: [B, S], target_input: [B, T] -> [B, T, M]."""
        is_source = source != PAD
        x = self.embed("encoder.embedding", source)
        for i in range(self.config.num_encoder_layers):
            name = f"encoder.layers.{i}"
            x = self.self_attention(f"{name}.self_attention", x, is_source[:, None].expand(-1, source.shape[1], -1))
            x = self.ffn(f"{name}.ffn", x)
        memory, x = x, self.embed("decoder.embedding", target_input)
        length = target_input.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril().expand(len(source), -1, -1)
        for i in range(self.config.num_decoder_blocks):
            name = f"decoder.blocks.{i}"
            x = self.self_attention(f"{name}.self_attention", x, causal)
            if self.config.decoder == "interleaved":
                x = self.ffn(f"{name}.ffn_1", x)
            x = self.cross_attention(f"{name}.cross_attention", x, memory, is_source[:, None].expand(-1, length, -1))
            x = self.ffn(f"{name}.ffn_2" if self.config.decoder == "interleaved" else f"{name}.ffn", x)
        return x

    def token_losses(self, batch, label_smoothing):
        """Of the tokens of the batch in their order, [T]; and their logits [T, V]."""
        source, target = (
            torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in side], True, PAD)
            for side in zip(*batch, strict=True)
        )
        target_input = torch.cat([torch.full((len(batch), 1), 2), target[:, :-1]], dim=1)
        is_target = target != PAD
        logits = (self.hidden(source, target_input) @ self.weights["token_embedding.weight"][:V].T)[is_target]
        log_p = logits.log_softmax(-1)
        nll = -log_p.gather(1, target[is_target][:, None]).squeeze(1)
        each = label_smoothing / (V - 1)
        return (1 - label_smoothing - each) * nll - each * log_p.sum(1), logits


def padded_twin(model):
    weights = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}
    return PaddedModel(weights, model.config)


LENGTHS = st.lists(st.tuples(st.integers(1, MAX_POSITIONS), st.integers(1, MAX_POSITIONS)), min_size=1, max_size=5)


@settings(max_examples=12)
@given(LENGTHS, st.sampled_from(["interleaved", "vanilla"]), st.booleans())
def test_packed_is_padded(lengths, decoder, embedding_norm):
    model = make_model(decoder=decoder, embedding_norm=embedding_norm)
    twin, batch = padded_twin(model), make_batch(lengths)
    loss, token_loss, _ = model(*packed(batch), 0.1)
    expected, expected_logits = twin.token_losses(batch, 0.1)
    torch.testing.assert_close(token_loss, expected.detach(), rtol=1e-11, atol=1e-11)
    source, target_input, _ = packed(batch)
    logits = model.logits(model.decode(target_input, model.encode(source), source))
    torch.testing.assert_close(logits, expected_logits, rtol=1e-11, atol=1e-11)
    loss.backward()
    expected.sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, twin.weights[name].grad, rtol=1e-8, atol=1e-10, msg=name)


def test_vanilla_block_is_torchs_decoder_layer():
    model = make_model(decoder="vanilla", num_decoder_blocks=1)
    block, config = model.decoder.blocks[0], model.config
    theirs = torch.nn.TransformerDecoderLayer(
        config.hidden_size,
        config.num_heads,
        config.ffn_size,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=False,
        dtype=torch.float64,
    )
    ours = dict(block.named_parameters())
    cross = {
        kind: torch.cat([ours[f"cross_attention.query.{kind}"], ours[f"cross_attention.key_value.{kind}"]])
        for kind in ("weight", "bias")
    }
    state = {}
    for kind in ("weight", "bias"):
        state |= {
            f"self_attn.in_proj_{kind}": ours[f"self_attention.query_key_value.{kind}"],
            f"self_attn.out_proj.{kind}": ours[f"self_attention.output.{kind}"],
            f"multihead_attn.in_proj_{kind}": cross[kind],
            f"multihead_attn.out_proj.{kind}": ours[f"cross_attention.output.{kind}"],
            f"linear1.{kind}": ours[f"ffn.input.{kind}"],
            f"linear2.{kind}": ours[f"ffn.output.{kind}"],
            f"norm1.{kind}": ours[f"self_attention.norm.{kind}"],
            f"norm2.{kind}": ours[f"cross_attention.norm.{kind}"],
            f"norm3.{kind}": ours[f"ffn.norm.{kind}"],
        }
    theirs.load_state_dict(state)
    x, memory = torch.randn(5, 12, dtype=torch.float64), torch.randn(7, 12, dtype=torch.float64)
    target, source = (PackedSequences.from_sequences([[0] * n]) for n in (5, 7))
    mask = torch.nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    expected = theirs(x[None], memory[None], tgt_mask=mask, tgt_is_causal=True)[0]
    torch.testing.assert_close(block(x, target, memory, source), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activation_checkpointing_changes_no_gradient(dropout):
    rates = {"dropout": dropout, "attention_dropout": dropout, "activation_dropout": dropout}
    inputs = packed(make_batch([(5, 4), (2, 7)]))
    gradients = []
    for activation_checkpointing in (False, True):
        model = make_model(activation_checkpointing=activation_checkpointing, **rates).train()
        torch.manual_seed(5)
        model(*inputs, 0.1).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize("rate", ["dropout", "attention_dropout", "activation_dropout"])
def test_each_dropout_works_in_training_and_only_there(rate):
    model, inputs = make_model(**{rate: 0.5}), packed(make_batch([(5, 4), (2, 7)]))
    exact = make_model().eval()(*inputs).loss
    assert torch.equal(model.eval()(*inputs).loss, exact)
    assert not torch.isclose(model.train()(*inputs).loss, exact)


def test_embedding_dropout_comes_after_the_norm():
    config = make_model(dropout=0.5).config
    torch.manual_seed(0)
    embedding, table = Embedding(config), torch.nn.Embedding(V, config.hidden_size)
    torch.nn.init.normal_(embedding.positions)
    token_rows, positions = table(torch.tensor([5, 6, 7])), torch.tensor([0, 1, 0])
    whole = embedding.eval()(token_rows, positions)
    dropped = embedding.train()(token_rows, positions)
    zero = dropped == 0
    assert zero.any()
    torch.testing.assert_close(dropped[~zero], 2 * whole[~zero])


def test_a_source_without_tokens_gives_finite_losses_and_gradients():
    model = make_model()
    model(*packed(make_batch([(0, 3), (4, 2)])), 0.1).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
    alone = model(*packed(make_batch([(0, 3), (4, 2)])[:1]), 0.1).token_loss
    together = model(*packed(make_batch([(0, 3), (4, 2)])), 0.1).token_loss[:3]
    torch.testing.assert_close(alone, together, rtol=1e-12, atol=1e-12)


def test_padding_rows_get_no_gradient_and_no_probability():
    model, inputs = make_model(), packed(make_batch([(5, 4)]))
    rows = model.token_embedding.weight
    assert not rows[V:].any()
    model(*inputs, 0.1).loss.backward()
    assert not rows.grad[V:].any()
    assert rows.grad[:V].all()  # smoothing reaches every real token
    before = model(*inputs, 0.1).loss
    with torch.no_grad():
        rows[V:] = 1e3
    assert torch.equal(model(*inputs, 0.1).loss, before)
    assert model.logits(torch.zeros(2, 12, dtype=torch.float64)).shape == (2, V)


@pytest.mark.parametrize("length", [lambda step: step + 1, lambda step: 5 if step < 5 else 40], ids=["exact", "masked"])
@pytest.mark.parametrize("decoder", ["interleaved", "vanilla"])
def test_decoding_step_by_step_is_decoding_at_once(decoder, length):
    """Two beams a sentence; half-way the beams are swapped, and at the end one sentence is dropped."""
    model = make_model(decoder=decoder).eval()
    sources = [source for source, _ in make_batch([(5, 1), (1, 1), (9, 1)])]
    prefixes = [list(target) for _, target in make_batch([(1, 8)] * 6, seed=1)]
    source = PackedSequences.from_sequences(sources)
    cache = model.start_decoding(source)

    def full(number):
        packed_source = PackedSequences.from_sequences([sources[number // 2]])
        target_input = PackedSequences.from_sequences([histories[number]])
        return model.logits(model.decode(target_input, model.encode(packed_source), packed_source))[-1]

    histories = [[] for _ in prefixes]
    for step in range(8):
        if step == 4:
            rows = [1, 0, 2, 2, 5, 4]  # swap, keep one beam twice, swap
            cache.select_rows(torch.tensor(rows))
            histories = [list(histories[row]) for row in rows]
        if step == 6:
            cache.select_rows(torch.tensor([0, 1, 4, 5]))
            cache.select_sentences(torch.tensor([0, 2]))
            sources, histories = [sources[0], sources[2]], [histories[row] for row in (0, 1, 4, 5)]
        tokens = [prefixes[row][step] for row in range(len(histories))]
        for history, token in zip(histories, tokens, strict=True):
            history.append(token)
        cache.reserve(length(step))
        logits = model.decode_step(torch.tensor(tokens), cache)
        for number in range(len(histories)):
            torch.testing.assert_close(logits[number], full(number), rtol=1e-10, atol=1e-10)


def test_fresh_weights():
    config = DeltaLMConfig.preset("tiny", vocabulary_size=1000)
    torch.manual_seed(0)
    weights = dict(DeltaLM(config).named_parameters())
    table = weights["token_embedding.weight"]
    assert not table[1000:].any()
    assert table[:1000].std().item() == pytest.approx(128**-0.5, rel=0.02)
    assert weights["encoder.embedding.positions"].std().item() == pytest.approx(128**-0.5, rel=0.02)
    for name, weight in weights.items():
        if name.endswith("bias"):
            assert not weight.any(), name
        elif name.endswith("norm.weight"):
            assert (weight == 1).all(), name
        elif weight.dim() == 2 and "embedding" not in name:
            bound = math.sqrt(6 / sum(weight.shape))
            assert 0.9 * bound < weight.abs().max().item() <= bound, name


@pytest.mark.parametrize("decoder", ["interleaved", "vanilla"])
def test_step_weights_are_those_that_a_step_multiplies_with(decoder, monkeypatch):
    model = DeltaLM(DeltaLMConfig.preset("tiny", vocabulary_size=50, decoder=decoder)).eval()
    seen = []
    multiply = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, w, b=None: seen.append(w) or multiply(x, w, b))
    with torch.inference_mode():
        cache = model.start_decoding(PackedSequences.from_sequences([[4, 5, 2]]))
        seen.clear()
        cache.reserve(1)
        model.decode_step(torch.tensor([2]), cache)
    places = [(weight.data_ptr(), weight.shape) for weight in seen]
    assert sorted(places) == sorted((weight.data_ptr(), weight.shape) for weight in model.step_weights())
