"""The ranges of a config's numbers, by the names of their keys.

Every number must be finite. A schedule's values, and the entries of a tuple, obey the rule of the key above
them.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """A condition on a number, and its text in the message after "it must"."""

    holds: Callable[[float], bool]
    text: str


COUNT = Rule(lambda x: x >= 1, "be at least 1")
POSITIVE = Rule(lambda x: x > 0, "be above 0")
NOT_NEGATIVE = Rule(lambda x: x >= 0, "be at least 0")
FRACTION = Rule(lambda x: 0 <= x < 1, "lie in [0, 1)")
PROBABILITY = Rule(lambda x: 0 <= x <= 1, "lie in [0, 1]")
INDEX = Rule(lambda x: x == int(x), "be a whole number")
AXIS = Rule(lambda x: x == -1 or x >= 1, "be at least 1, or -1 for what is left")

# The first pattern that matches the end of a key's path counts.
_RULES = tuple(
    (re.compile(rf"(?:.*\.)?(?:{names})"), rule)
    for names, rule in (
        # Of the run.
        (r"total_steps|grad_accum|log_every|eval_every|batch_size|steps", COUNT),
        (r"tokenizer\.(size|length)|checkpoint\.(every|keep)", COUNT),
        (r"skipped_in_a_row|window_examples|evaluator_failures_in_a_row", COUNT),
        (r"mesh\.(data|fsdp|tensor)|mesh_rules\.\d+\.1\.(data|fsdp|tensor)", AXIS),
        (r"seed|profile|warmup_steps|cache_mib|threads", NOT_NEGATIVE),
        # Of optimisers and objectives.
        (r"learning_rate|lr_multipliers|rates|weight_decay|clip_norm|weight", NOT_NEGATIVE),
        (r"objectives\.\w+\.layers", INDEX),  # negative ones count from the end
        (r"evals\.\w+\.window", NOT_NEGATIVE),  # 0 for none
        (r"evals\.\w+\.scales", POSITIVE),
        (r"bins|gradient_weight|pixel_group", NOT_NEGATIVE),
        (r"min_depth|max_depth", POSITIVE),
        (r"upsample", COUNT),
        (r"b1|b2|momentum|bn_momentum|label_smoothing", FRACTION),
        (r"eps|epsilon|temperature|\w+_temperature", POSITIVE),
        (r"embed_dim|classes|prototypes|hidden|bottleneck|layers|crops|iterations", COUNT),
        (r"mask_group|downsample|max_boxes|num_classes|eval_transform\.(size|resize)", COUNT),
        (r"chunk|koleo_group|bn_group", NOT_NEGATIVE),
        # Of encoders.
        (
            r"(pooling_)?(heads|mlp_dim)|patch|image_size|pooled_dim|blocks|drop_path_groups|rope_side|depths|window",
            COUNT,
        ),
        (r"width|depth|rope_base|rope_rescale|mlp_ratio", POSITIVE),
        (r"drop_path|drop_connect|dropout|patch_dropout", FRACTION),
        # Of fields.
        (
            r"std|projection_std|scale|crop\.ratio",
            POSITIVE,
        ),  # crop.ratio is width / height, which may be above 1
        (r"\w+_prob|share|ratio|replaced_fraction", PROBABILITY),
        (r"captions\..+|prompt_words", NOT_NEGATIVE),
        (r"jitter|mixup|cutmix|mix_group|registers|pretrained_window", NOT_NEGATIVE),
    )
)
_INSIDE = re.compile(r"\.(?:peak|start|final|values\.\d+\.1|\d+)$")


def broken_rules(value: Any, path: str = "") -> Iterator[str]:
    """Yields a line for each number out of range in a config, or in its subtree at path."""
    for name, number in _numbers(value, path):
        rule = _rule(name)
        if not math.isfinite(number):
            yield f"{name} is {number}; it must be a finite number"
        elif rule and not rule.holds(number):
            yield f"{name} is {number}; it must {rule.text}"


def _rule(name):
    """The rule of the key, or of the nearest key above it that has one, through schedules and tuples."""
    while True:
        for pattern, rule in _RULES:
            if pattern.fullmatch(name):
                return rule
        if not _INSIDE.search(name):
            return None
        name = _INSIDE.sub("", name)


def _numbers(value, path):
    """Yields (path, number) for every number in the value."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _numbers(entry, f"{path}.{key}".lstrip("."))
    elif isinstance(value, tuple | list):
        for i, entry in enumerate(value):
            yield from _numbers(entry, f"{path}.{i}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value
