"""Which methods of a predictor a model has, by its encoders' outputs and its heads."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import flax.linen as nn

from big_ssl.data.preprocessing import Pixels
from big_ssl.models.encoder import Encoder
from big_ssl.objectives.base import EncoderCall

# The methods that a model may have, which evaluators require and the heads of objectives provide.
METHODS = (
    "encode_image",
    "encode_text",
    "zero_shot",
    "patch_features",
    "image_tokens",
    "intermediate_layers",
    "attention_maps",
    "class_attention",
    "classify",
    "detect",
    "segment",
    "depth",
)
# Methods of dense heads, which a model stores as objectives: {method: options} under ModelConfig's "tasks".
TASKS = ("detect", "segment", "depth")
# Methods of one embedding space: their results are compared with one another.
_EMBEDDINGS = ("encode_image", "encode_text", "zero_shot")


class Trained(Protocol):
    """Encoders and the objectives' heads, such as training.system.System."""

    @property
    def encoders(self) -> Mapping[str, Encoder]: ...

    @property
    def terms(self) -> Mapping[str, Any]: ...

    @property
    def eval_pixels(self) -> Pixels: ...

    def provider(self, method: str) -> str:
        """The objective whose head provides this method; "" for none. Raises ValueError if undecided."""
        ...

    def encode(self, variables: Mapping, call: EncoderCall, inputs: Any) -> dict[str, Any]:
        """The encoder outputs of a batch field, in evaluation mode."""
        ...

    def head(self, variables: Mapping, name: str, inputs: Mapping[str, dict]) -> dict[str, Any]:
        """The features of an objective's head in evaluation mode."""
        ...

    def bound_encoder(self, variables: Mapping, call: EncoderCall, images) -> tuple[nn.Module, Mapping, Any]:
        """(an encoder, its variables, its normalised input)."""
        ...


class Prediction(NamedTuple):
    """How a method's result is computed.

    objective: its head is applied. input: the head's input that gets the outputs of `call`. feature: the key
    of the result among the head's features.
    """

    objective: str
    input: str
    call: EncoderCall
    feature: str


def prediction(system: Trained, method: str) -> Prediction | None:
    """The Prediction of an objective's head for this method; None without such a head."""
    name = system.provider(method)
    if not name:
        return None
    term = system.terms[name]
    (head_input,), feature = term.objective.provides[method]
    return Prediction(name, head_input, evaluation_call(term.calls[head_input]), feature)


def evaluation_call(call: EncoderCall) -> EncoderCall:
    """The call without mask, at the usual resolution: its images come from config.eval_transform."""
    return call._replace(masked=False, high_res=False)


def image_call(system: Trained) -> EncoderCall | None:
    """The call of the encoder whose outputs evaluation reads, None without an encoder of images.

    It is the encoder behind encode_image, else behind classify, else the one named "image", else the first
    that an objective trains.
    """
    for method in ("encode_image", "classify"):
        if (how := prediction(system, method)) is not None:
            return how.call
    calls = [call for term in system.terms.values() for call in term.calls.values()]
    calls = [call for call in calls if system.encoders[call.encoder].input == "image" and not call.teacher]
    calls.sort(key=lambda call: call.encoder != "image")
    if calls:
        return evaluation_call(calls[0])
    return EncoderCall("image", "image") if "image" in system.encoders else None


def methods(system: Trained) -> tuple[str, ...]:
    """The methods of METHODS that a model has."""
    call = image_call(system)
    by_encoder = () if call is None else _without_head(system.encoders[call.encoder])
    return tuple(method for method in METHODS if method in by_encoder or system.provider(method))


def _without_head(encoder: Encoder) -> set[str]:
    """Methods that an image encoder has without any head: encode_image is then its pooled output."""
    available = {"encode_image", "patch_features"}
    if "layers" in encoder.outputs:
        available |= {"image_tokens", "intermediate_layers"}
    if encoder.has_attention_maps:
        available |= {"attention_maps", "class_attention"} if "cls" in encoder.outputs else {"attention_maps"}
    return available


def requirement_error(predictor, requires: Sequence[str]) -> str:
    """An error that names the required methods that a model lacks, and those that it has; "" for none."""
    missing = [method for method in requires if method not in predictor.methods]
    if missing:
        objectives = [
            f"{name}: {listed(term.objective.provides)}" for name, term in predictor.system.terms.items()
        ]
        provided = f" (its objectives provide {'; '.join(objectives)})" if objectives else ""
        return f"requires {listed(missing)}; the model has {listed(predictor.methods)}{provided}"
    providers = {method: predictor.system.provider(method) for method in requires if method in _EMBEDDINGS}
    if len(set(providers.values())) > 1:
        spaces = ", ".join(f"{method} is {name}'s" for method, name in providers.items())
        return f"requires embeddings in one space; {spaces} (config.predictors)"
    return ""


def listed(names: Iterable[str]) -> str:
    """Names separated by commas, "nothing" without any."""
    return ", ".join(names) or "nothing"
