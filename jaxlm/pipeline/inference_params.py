"""Parameters for inference: in a reduced precision, and in the form that decoding needs."""

import functools
from typing import Any

import jax

from jaxlm.errors import UserError
from jaxlm.models.properties import dummy_batch
from jaxlm.nn.transformer.layer_stack import decoding_params
from jaxlm.nn.weights.weight_formats import PRECISIONS, can_be_narrow, in_precision
from jaxlm.nn.weights.weight_users import weight_path, weight_users
from jaxlm.types import Params


@functools.partial(jax.jit, static_argnames="model")
def prepare_params(model: Any, params: Params) -> Params:
    """Return the parameters as decoding needs them, see `decoding_params`; unchanged ones are not copied."""
    return decoding_params(params, functools.partial(_call, model))


def _call(model: Any, params: Params) -> Any:
    return model.apply({"params": params}, dummy_batch())


def cast_for_inference(model: Any, params: Params, precision: str) -> tuple[Any, Params]:
    """Return the model and its parameters in one of `PRECISIONS`, which the kernels and tables of its layers get.

    On an accelerator all activations of a model with a `dtype` become bfloat16, unless they become int8. On a CPU only
    the inputs of products do, since XLA's other bfloat16 operations are slow there. Parameters of layers that are
    neither jaxlm's nor Flax's stay. Raises UserError if there are no others, or if the model cannot compute with them.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision={precision!r} must be one of {', '.join(PRECISIONS)}")
    if precision == "float32":
        return model, params
    users = weight_users(functools.partial(_call, model), params)

    def cast(path: tuple, leaf: Any) -> Any:
        names = weight_path(path)
        return in_precision(leaf, precision, users.get(names, set()), is_table=names[-1:] != ("kernel",))

    name, hint = type(model).__name__, f"leave out --precision {precision}"
    if not any(map(can_be_narrow, users.values())):
        raise UserError(f"no weights of {name} are in a layer of jaxlm or Flax, and no others have a precision: {hint}")
    narrow = jax.jit(functools.partial(jax.tree_util.tree_map_with_path, cast))(params)
    if precision != "int8_dynamic" and jax.default_backend() != "cpu":
        model = _with_dtype(model, "bfloat16")
    try:
        jax.eval_shape(functools.partial(_call, model), narrow)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{name} cannot compute with {precision} weights ({reason}): {hint}") from error
    return model, narrow


def _with_dtype(model: Any, dtype: str) -> Any:
    """The model, or the model that it wraps, with activations of this dtype; unchanged if it has no `dtype`."""
    if hasattr(model, "dtype"):
        return model.clone(dtype=dtype)
    return model.clone(model=_with_dtype(model.model, dtype)) if hasattr(model, "model") else model
