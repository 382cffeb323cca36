"""The base of the classes whose methods a Predictor inherits."""

from collections.abc import Callable, Mapping
from typing import Any


class PredictorPart:
    """What these classes use of a Predictor; see there for the attributes.

    compiled_head: method -> a compiled function (variables, images) -> [B, ...], the result of the head that
      provides the method.
    """

    system: Any
    encoder: Any
    variables: Any
    channels: int
    image_config: Mapping
    compiled_head: Callable
    _mesh: Any

    def _require(self, method: str) -> None:
        """Raises ValueError if the model lacks the method."""
        raise NotImplementedError

    def _read(self, method: str, function: Callable, images, resize: bool, *options) -> Any:
        """`apply`, of images as any method takes them. Raises ValueError if the model lacks the method."""
        raise NotImplementedError

    def _in_batches(self, function: Callable, inputs, size: int | None = None) -> Any:
        """A compiled function of [size, ...], applied to [N, ...]; size: None for the usual number."""
        raise NotImplementedError

    def _head_feature(self, variables, how, outputs):
        """The result of a method, of a Prediction and the encoder outputs that its head reads."""
        return self.system.head(variables, how.objective, {how.input: outputs})[how.feature]

    def _head_result(self, variables, how, inputs):
        """The result of a method, of a Prediction and the batch field that its encoder reads."""
        return self._head_feature(variables, how, self.system.encode(variables, how.call, inputs))
