"""The interface of evaluators, which training, the command and the report use."""

from typing import TYPE_CHECKING

from big_ssl.evals.report_sections import EvalSection

if TYPE_CHECKING:  # heavy, and needed for annotations alone
    from big_ssl.evals.predictor import Predictor


class Evaluator:
    """Measures models. An evaluator is built once, from its options and its name, and used for many models,
    or many states of one model, which must all preprocess images in the same way.

    requires: the predictor's methods that it needs, see capabilities.METHODS; checked before `check`.
    """

    requires: tuple[str, ...] = ()

    def check(self, predictor: "Predictor") -> None:
        """Raises ValueError, before anything slow, if the model does not fit."""

    def metrics(self, predictor: "Predictor") -> dict[str, float]:
        """{"<kind>/<dataset>/<metric>": value}."""
        raise NotImplementedError

    def sections(self, predictor: "Predictor") -> list[EvalSection]:
        """Sections of the report; none by default. All hosts call it."""
        del predictor
        return []
