"""Sentences about files, each said once, with their number."""

NOTED: dict[str, set[str]] = {}  # the files by the sentence
SAID: set[str] = set()


def note(sentence: str, path) -> None:
    """Keeps a sentence, with {} for the files that it is about, and one of them, until `say_notes`."""
    NOTED.setdefault(sentence, set()).add(str(path))


def say_notes() -> None:
    """Prints the sentences that were not said before in this process."""
    for sentence, files in NOTED.items():
        if sentence not in SAID:
            SAID.add(sentence)
            count = f"{len(files)} files, such as" if len(files) > 1 else "1 file:"
            print(sentence.format(f"{count} {min(files)}"), flush=True)
