"""``python -m nano``: make the embedded model, and measure it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Make the embedded model from nothing, and measure it.", no_args_is_help=True)


@app.command()
def build(
    photos: Annotated[Path, typer.Option(help="Folder of photographs to learn from (every fifth is kept out).")],
    out: Annotated[Path, typer.Option(help="Folder for everything that is made; a killed build goes on there.")],
    seed: Annotated[int, typer.Option(help="Of all pictures, questions and initial weights.")] = 1,
) -> None:
    """From pictures to weights; it takes hours on two CPU cores, and goes on where it was killed."""
    from nano.build import build as run

    print(f"trained: {run(photos, out, seed=seed)}")


@app.command()
def photographs(
    flickr8k: Annotated[Path, typer.Option(help="Folder with images/ and captions.jsonl.")],
    daquar: Annotated[Path, typer.Option(help="Folder with images/ and qa.jsonl.")],
    photos: Annotated[Path, typer.Option(help="Folder of photographs of ImageNet classes (every fifth is kept out).")],
    out: Annotated[Path, typer.Option(help="Folder for everything that is made; a killed run goes on there.")],
    start: Annotated[str, typer.Option(help="Name or folder of a model that knows drawings.")] = "nano",
    seed: Annotated[int, typer.Option(help="Of all pictures, questions and samples.")] = 1,
    processes: Annotated[int, typer.Option(help="That train side by side, each on one thread.")] = 2,
) -> None:
    """Teach a model that knows drawings to describe photographs, from people's captions and questions."""
    from nano.human_build import Sizes, learn_photographs

    trained = learn_photographs(start, flickr8k, daquar, photos, out, sizes=Sizes(), seed=seed, processes=processes)
    print(f"trained: {trained}")


@app.command()
def smollm2(
    decoder: Annotated[Path, typer.Option(help="A .gguf file whose chats are ChatML, such as SmolLM2-135M-Instruct.")],
    flickr8k: Annotated[Path, typer.Option(help="Folder with images/ and captions.jsonl.")],
    out: Annotated[Path, typer.Option(help="Folder for everything that is made; a killed run goes on there.")],
    align_steps: Annotated[int, typer.Option(min=1, help="Of stage 1: the projector, from captions.")] = 500,
    instruct_steps: Annotated[int, typer.Option(min=1, help="Of stage 2: the projector, and adapters.")] = 500,
    seed: Annotated[int, typer.Option(help="Of records, new weights and order.")] = 1,
) -> None:
    """Give a language model of other people nano's eyes: a projector, and adapters."""
    from nano.smollm2 import Steps, learn

    print(f"trained: {learn(decoder, flickr8k, out, steps=Steps(align_steps, instruct_steps), seed=seed)}")


@app.command()
def export(
    trained: Annotated[Path, typer.Argument(help="Folder of a trained model.")],
    folder: Annotated[Path, typer.Argument(help="Where to write it in half precision.")],
) -> None:
    """Write a trained model as the package ships it."""
    from nano.build import export as run

    run(trained, folder)


@app.command()
def evaluate(
    model: Annotated[str, typer.Option(help="Name or folder of the model.")] = "nano",
    count: Annotated[int, typer.Option(help="Held-out questions of the generator.")] = 3300,
    photos: Annotated[
        Path | None, typer.Option(help="Photographs as given to build: the kept-out ones are named.")
    ] = None,
    flickr8k: Annotated[
        Path | None, typer.Option(help="Folder as given to photographs: its dev split is asked.")
    ] = None,
    daquar: Annotated[
        Path | None, typer.Option(help="Folder as given to photographs: kept-out rooms are asked.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Captioned photographs at most.")] = None,
    easy_vqa: Annotated[bool, typer.Option(help="Ask easy-VQA's test questions too.")] = True,
    pages: Annotated[int, typer.Option(help="Drawn pages of words to read (extra ocr).")] = 0,
    engine: Annotated[str, typer.Option(help="What answers: auto, native or torch, as in describe.")] = "auto",
    bits: Annotated[int | None, typer.Option(help="Pack float weights to 4, 8 or 16 bits for native.")] = None,
) -> None:
    """Held-out figures: the generator's questions by family, easy-VQA's test split, photographs, people's captions."""
    from mobillama_v.loading import load
    from nano import evaluate as judge
    from nano import evaluate_photos as with_people
    from nano.build_scenes import UNSEEN_READING
    from nano.evaluate_reading import read_pages
    from nano.human_data import read_captions, read_questions
    from nano.photos import split

    def say(text: str) -> None:
        typer.echo(text, err=True)

    assistant = load(model, engine=engine, bits=bits, ocr=pages > 0)
    say(f"{model}: {assistant.engine.title}")
    if pages:
        print(read_pages(assistant, pages), flush=True)
        assistant.reader = None
    if count:
        tally = judge.held_out(assistant, count=count, say=say)
        for family in tally.asked:
            print(f"{family:16} {100 * tally.accuracy([family]):5.1f} % of {tally.asked[family]}")
        seen = [family for family in tally.asked if family != UNSEEN_READING]
        print(f"{'overall':16} {100 * tally.accuracy(seen):5.1f} % of {sum(tally.asked[f] for f in seen)}")
    if easy_vqa:
        easy = judge.easy_vqa(assistant, say=say)
        print(f"{'easy-VQA test':16} {100 * easy.accuracy():5.1f} % of {sum(easy.asked.values())}")
    if photos is not None:
        named = judge.name_photos(assistant, split(photos)[1])
        for each in named:
            print(
                f"{'+' if each.named else '-'} {each.photo.name}: {each.known_as} {each.probability:.2f}: {each.answer}"
            )
        print(f"{'photographs':16} {sum(each.named for each in named)} of {len(named)} named")
    if flickr8k is not None:
        captioned = [each for each in read_captions(flickr8k) if each.split == "dev"][:limit]
        interviewer = with_people.Interviewer(assistant, flickr8k)
        descriptions = with_people.describe(interviewer, captioned)
        for each in captioned:
            print(f"{each.image}: {descriptions.texts[each.image]}")
        print(descriptions, flush=True)
        for score in with_people.from_captions(interviewer, captioned):
            print(score, flush=True)
        for score in with_people.consistency(interviewer, descriptions, captioned):
            print(score, flush=True)
    if daquar is not None:
        for score in with_people.rooms(with_people.Interviewer(assistant, daquar), read_questions(daquar)[1]):
            print(score, flush=True)


if __name__ == "__main__":
    from mobillama_v.errors import MobiLlamaVError

    try:
        app(prog_name="python -m nano")
    except MobiLlamaVError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
