"""The formulation of the pyramid's upsampling for TPUs against the one for other platforms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.models import fpn


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_upsampling_by_a_product_equals_repeated_pixels(dtype):
    x, cotangent = (
        jnp.asarray(np.random.default_rng(0).standard_normal(shape), dtype) for shape in ((2, 3, 5, 4), (2, 6, 10, 4))
    )

    @jax.jit
    def both(x, cotangent):
        pairs = (jax.vjp(f, x) for f in (fpn._upsample_by_product, fpn._upsample_by_repeating))
        return [(value, *transposed(cotangent)) for value, transposed in pairs]

    (value, gradient), (expected_value, expected_gradient) = both(x, cotangent)
    np.testing.assert_array_equal(value, expected_value)
    np.testing.assert_allclose(
        gradient.astype(jnp.float32), expected_gradient.astype(jnp.float32), rtol=0, atol=4 * jnp.finfo(dtype).eps
    )
