"""The contract between an evaluator and those that run it: training, the command, the report."""

from typing import TYPE_CHECKING

from big_ssl.evals.report_sections import EvalSection

if TYPE_CHECKING:  # heavy, and needed for annotations alone
    from big_ssl.evals.predictor import Predictor


class Evaluator:
    """Measures models. Built once, from its options and its name; used for many models, or for many states of
    one model, which all preprocess images in the same way.

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
