"""The table of the speech models and the judge of voices: bad input."""
import numpy as np
import pytest

from arlm_nb.speech import common as C
from arlm_nb.speech import speaker_judge


@pytest.mark.parametrize("call,says", [
    (lambda: speaker_judge.equal_error_rate(np.ones(3), np.ones(3, bool)), "both kinds"),
    (lambda: C.evaluate_tts({}, []), "at least one"),
])
def test_bad_input(call, says):
    with pytest.raises(ValueError, match=says): call()
