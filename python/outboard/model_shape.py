"""Parameter counts of a model that does not exist yet: from a configuration file or a size. Counts
only; what a plan makes of them is plan.py's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WHO = "outboard.plan"
# Two matrices in the feed-forward part, not the three of a gated one.
UNGATED = frozenset(
    [
        "gpt2",
        "gpt_neo",
        "gpt_neox",
        "gptj",
        "opt",
        "bloom",
        "falcon",
        "phi",
        "codegen",
        "bert",
        "roberta",
        "starcoder2",
    ]
)
# Their configuration files leave the default out, and it is tied.
TIED = frozenset(
    ["gpt2", "gpt_neo", "opt", "bloom", "gemma", "gemma2", "gemma3_text", "bert", "roberta"]
)
VOCABULARY = 50304


@dataclass(frozen=True)
class ModelShape:
    """A transformer: elements of each parameter, in the order of first use in the forward."""

    name: str
    elements: tuple[int, ...]
    hidden: int
    layers: int
    vocabulary: int
    idle: int = 0  # elements of experts that a token does not meet

    @property
    def parameters(self) -> int:
        return sum(self.elements)

    @property
    def active_parameters(self) -> int:
        """Those that one token meets."""
        return self.parameters - self.idle

    def device_bytes(self, tokens: int, bytes_per_weight: int = 2) -> int:
        """Weights, checkpointed activations and logits (16-bit, and fp32 for the loss) of one
        micro-step, without gradients or an optimizer."""
        activations = 2 * tokens * self.hidden * self.layers
        return bytes_per_weight * self.parameters + activations + 6 * tokens * self.vocabulary


def _transformer(
    name: str,
    hidden: int,
    layers: int,
    vocabulary: int,
    intermediate: int,
    *,
    key_value: int,
    query: int,
    is_gated: bool,
    is_tied: bool,
    experts: int = 0,
    experts_per_token: int = 0,
    positions: int = 0,
) -> ModelShape:
    matrices = 3 if is_gated else 2
    layer = [hidden, query * hidden, key_value * hidden, key_value * hidden, query * hidden, hidden]
    if experts:
        layer += [experts * hidden]
    layer += [intermediate * hidden] * (matrices * max(experts, 1))
    elements = [vocabulary * hidden, *([positions * hidden] if positions else []), *layer * layers]
    elements += [hidden, *([] if is_tied else [vocabulary * hidden])]
    idle = (experts - experts_per_token) * matrices * intermediate * hidden * layers
    return ModelShape(name, tuple(elements), hidden, layers, vocabulary, max(idle, 0))


def shape_of_size(parameters: float) -> ModelShape:
    """A GPT of about so many parameters: tied embedding, width 80 times the depth."""
    if not 1e6 <= parameters <= 1e13:
        raise ValueError(f"[{WHO}] a model of {parameters:g} parameters; give 1e6 to 1e13")
    hidden = max(128, round((parameters * 80 / 12) ** (1 / 3) / 128) * 128)
    layers = max(1, round((parameters - VOCABULARY * hidden) / (12 * hidden**2)))
    # The vocabulary takes up what whole layers leave: the sum is what was asked for.
    vocabulary = round((parameters - 12 * hidden**2 * layers) / hidden)
    if vocabulary < 1:
        vocabulary = VOCABULARY
    return _transformer(
        f"GPT of {layers} layers, {hidden} wide",
        hidden,
        layers,
        vocabulary,
        4 * hidden,
        key_value=hidden,
        query=hidden,
        is_gated=False,
        is_tied=True,
    )


def _number(config: Mapping[str, Any], names: tuple[str, ...], default: int | None = None) -> int:
    for name in names:
        if config.get(name) is not None:
            return int(config[name])
    if default is None:
        raise KeyError(names[0])
    return default


def shape_of_config(path: str | Path) -> ModelShape:
    """The shape that a config.json in the manner of Hugging Face describes.

    Counts dense and mixture-of-experts decoders; biases are left out. Raises ValueError, naming the
    file and what it lacks.
    """
    try:
        config = json.loads(Path(path).read_text())
        config = config.get("text_config") or config
        kind = str(config.get("model_type", Path(path).stem))
        hidden = _number(config, ("hidden_size", "n_embd", "d_model"))
        layers = _number(config, ("num_hidden_layers", "n_layer", "num_layers"))
        vocabulary = _number(config, ("vocab_size",))
        heads = _number(config, ("num_attention_heads", "n_head"), 1)
        head = _number(config, ("head_dim",), hidden // heads)
        intermediate = ("moe_intermediate_size", "intermediate_size", "n_inner", "ffn_dim")
        experts = _number(config, ("num_local_experts", "num_experts", "n_routed_experts"), 0)
        return _transformer(
            kind,
            hidden,
            layers,
            vocabulary,
            _number(config, intermediate, 4 * hidden),
            key_value=_number(config, ("num_key_value_heads",), heads) * head,
            query=heads * head,
            is_gated=kind not in UNGATED,
            is_tied=bool(config.get("tie_word_embeddings", kind in TIED)),
            experts=experts,
            experts_per_token=_number(config, ("num_experts_per_tok",), experts),
            positions=_number(config, ("n_positions",), 0) if kind == "gpt2" else 0,
        )
    except KeyError as error:
        raise ValueError(
            f"[{WHO}] {path} has no {error}; give a config.json with hidden_size, "
            "num_hidden_layers and vocab_size, or use --parameters"
        ) from error
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"[{WHO}] {path} is no configuration of a model: {error}") from error
