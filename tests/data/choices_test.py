import pytest

from quantlab.data import choices

ROWS = [
  {
    "id": "1",
    "question": "What is wet?",
    "choices": {"text": ["sand", "water", "air"], "label": ["A", "B", "C"]},
    "answerKey": "B",
  },
  {
    "id": "2",
    "question": "What is two?",
    "choices": {
      "text": ["1", "one", "1+1", "0"],
      "label": ["1", "2", "3", "4"],
    },
    "answerKey": "3",
  },
]


@pytest.fixture(name="cache", autouse=True)
def _cache(tmp_path_factory, monkeypatch):
  import datasets.config

  folder = tmp_path_factory.mktemp("cache")
  monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)


def _write(folder, rows=ROWS):
  import datasets

  file = str(folder / "arc.parquet")
  datasets.Dataset.from_list(rows).to_parquet(file)
  return file


def test_questions_are_completed(tmp_path):
  task = choices.arc(_write(tmp_path))
  assert task.prompts[0] == "Question: What is wet?\nAnswer:"
  assert task.options == [("sand", "water", "air"), ("1", "one", "1+1", "0")]
  assert task.answers == [1, 2]
  assert len(task) == 2
  assert task.texts[1] == "Question: What is wet?\nAnswer: water"
  assert task.stems == [task.prompts[0]] * 3 + [task.prompts[1]] * 4
  assert len(task.texts) == 7


def test_letters_are_named(tmp_path):
  task = choices.arc(_write(tmp_path), letters=True)
  expected = "Question: What is two?\nA. 1\nB. one\nC. 1+1\nD. 0\nAnswer:"
  assert task.prompts[1] == expected
  assert task.options[1] == ("A", "B", "C", "D")
  assert task.answers == [1, 2]
  assert task.sha256 != choices.arc(_write(tmp_path)).sha256


def test_pick_divides_by_characters(tmp_path):
  task = choices.arc(_write(tmp_path))
  nats = [4.0, 4.9, 3.0, 1.0, 2.9, 2.8, 1.0]
  assert task.pick(nats) == [1, 2]
  for wrong in (nats[:-1], [*nats, 1.0]):
    with pytest.raises(
      ValueError, match=rf"{len(wrong)} numbers for 7 options"
    ):
      task.pick(wrong)


def test_number_of_options(tmp_path):
  task = choices.arc(_write(tmp_path), options=4)
  assert (len(task), task.answers) == (1, [2])
  with pytest.raises(ValueError, match="no questions"):
    choices.arc(_write(tmp_path), options=5)


def test_draw(tmp_path):
  task = choices.arc(_write(tmp_path), limit=1, seed=2)
  assert len(task) == 1
  assert task.source.endswith("seed 2")


def test_answer_that_is_no_choice(tmp_path):
  source = _write(tmp_path, [ROWS[0] | {"answerKey": "D"}])
  message = r"answer 'D' of 'What is wet\?' is not one of \['A', 'B', 'C'\]"
  with pytest.raises(ValueError, match=message):
    choices.arc(source)


def test_missing_column(tmp_path):
  rows = [{k: v for k, v in ROWS[0].items() if k != "answerKey"}]
  with pytest.raises(ValueError, match="no column 'answerKey' among"):
    choices.arc(_write(tmp_path, rows))


def test_offline():
  with pytest.raises(ConnectionError, match="ai2_arc"):
    choices.arc()
