import pydoc

import pytest

import quantlab as ql


def test_equal_arguments_give_the_same_object():
  assert ql.rtn(4) is ql.rtn(4)
  assert ql.icquant(ql.rtn(2)) is ql.icquant(ql.rtn(2))
  assert ql.rtn(4) is not ql.rtn(5)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda: ql.rtn(4, granularity=[1]),
      r"rtn: granularity=\[1\] is a list; expected something hashable",
    ),
    (lambda: ql.rtn({}), r"rtn: bits=\{\} is a dict"),
    (lambda: ql.rtn(bts=4), "unexpected keyword argument 'bts'"),
    (lambda: ql.rtn("4"), "not supported between instances"),
  ],
)
def test_an_error_names_the_argument(call, message):
  with pytest.raises(TypeError, match=message):
    call()


def test_it_looks_like_the_function():
  assert ql.rtn.__name__ == "rtn"
  assert repr(ql.rtn).startswith("<function rtn")
  text = pydoc.render_doc(ql.rtn, renderer=pydoc.plaintext)
  assert "bits: int" in text
  assert "Rounds to the nearest of" in text
  assert "Rounds to the nearest of" in ql.rtn.__doc__
