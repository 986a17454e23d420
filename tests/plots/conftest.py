import numpy as np
import pytest

from toxloc import Localization
from toxloc.localization.uncertainty import Uncertainty


@pytest.fixture
def loc():
    """Two layers of 600 neurons; attribution alone has intervals."""
    rng = np.random.default_rng(0)
    sure = Uncertainty(low=np.array([-4.0, 0.5]), high=np.array([-2.0, 2.5]), null_mean=np.array([0.25, -0.25]),
                       null_sd=np.array([0.5, 1.0]), z=np.array([-6.5, 1.75]), p=np.array([0.001, 0.03]),
                       p_adjusted=np.array([0.002, 0.06]))
    return Localization({"activation": np.array([1.0, 4.0]), "attribution": np.array([-3.0, 1.5])},
                        {"activation": rng.normal(size=(2, 600)), "attribution": rng.normal(size=(2, 600))},
                        {"model": "m"}, np.ones((2, 600)), {"attribution": sure})
