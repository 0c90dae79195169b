import pytest

from quantlab.experiments import gaussian


@pytest.mark.study
def test_index_code_is_stored_at_its_expected_cost():
  for ratio, _, bound, exact, stored in gaussian.index_code(rows=128):
    assert exact == pytest.approx(bound, rel=0.03)
    assert stored == pytest.approx(exact, rel=0.01), ratio


def test_ranges_shrink_from_absmax_to_the_optimum():
  optimum = {2: 1.21, 3: 1.89, 4: 2.33}
  for bits, start, _, end in gaussian.ranges(channels=16):
    assert start == pytest.approx(3.8, rel=0.05)
    assert end == pytest.approx(optimum[bits], abs=0.04)
