"""Wordings of questions, one tuple per thing that can be asked; braces are filled by :mod:`questions`."""

from __future__ import annotations

from mobillama_v.prompt import SHORT_ANSWER as SINGLE_WORD_SUFFIX

__all__ = ["DESCRIBE_PROMPTS", "SINGLE_WORD_SUFFIX"]

DESCRIBE_PROMPTS: tuple[str, ...] = (
    "Describe the image.",
    "Describe this picture.",
    "What is in this picture?",
    "What do you see?",
    "Describe this picture in detail.",
    "What does the image show?",
    "Describe what you see in the image.",
    "Give a short description of this image.",
    "Can you describe the picture?",
    "What is shown here?",
)

COLOR = (
    "What color is the {ref}?",
    "What is the color of the {ref}?",
    "Which color is the {ref}?",
    "What color does the {ref} have?",
    "Tell me the color of the {ref}.",
    "The {ref} is what color?",
    "In what color is the {ref} drawn?",
    "What color is the {ref} in the image?",
)
COLOR_AT = (
    "What color is the thing {place}?",
    "What color is the shape {place}?",
    "What is the color of the thing {place}?",
    "Which color does the shape {place} have?",
)
SHAPE_OF_COLOR = (
    "What shape is {color}?",
    "What is the {color} thing?",
    "What is the {color} shape?",
    "Which shape is {color}?",
    "What shape is the {color} thing?",
    "What kind of shape is {color}?",
    "Name the {color} shape.",
)
SHAPE_ONLY = (
    "What shape is this?",
    "What shape is in the image?",
    "What shape does the image contain?",
    "What shape is present?",
    "Which shape is drawn here?",
    "What is the shape in the picture?",
    "Name the shape.",
    "What shape can you see?",
)
SHAPE_AT = (
    "What shape is {place}?",
    "Which shape is {place}?",
    "What kind of shape is {place}?",
    "What shape do you see {place}?",
)
THING_AT = (
    "What is {place}?",
    "What is {place} of the picture?",
    "What can you see {place}?",
    "Which thing is {place}?",
)

COUNT_ALL = (
    "How many shapes are there?",
    "How many shapes are in the image?",
    "Count the shapes.",
    "How many shapes do you see?",
    "What is the number of shapes?",
    "How many shapes does the picture show?",
)
COUNT_THINGS = (
    "How many things are there?",
    "How many objects are in the image?",
    "Count the objects.",
    "How many things can you see?",
)
COUNT_SOME = (
    "How many {plural} are there?",
    "How many {plural} are in the image?",
    "Count the {plural}.",
    "How many {plural} do you see?",
    "What is the number of {plural}?",
    "How many {plural} can be seen in the picture?",
)
COUNT_WORDS = (
    "How many words are there?",
    "How many words are written?",
    "Count the words.",
    "How many texts are there?",
)

POSITION = (
    "Where is the {ref}?",
    "Where is the {ref} in the image?",
    "Where can you see the {ref}?",
    "In which part of the picture is the {ref}?",
    "What is the position of the {ref}?",
    "Where in the image is the {ref} located?",
    "Which part of the image contains the {ref}?",
)

RELATION_CHECK = (
    "Is the {ref} {relation} the {other}?",
    "Is the {ref} {relation} the {other} in the picture?",
    "Can you see the {ref} {relation} the {other}?",
    "Does the {ref} lie {relation} the {other}?",
    "Would you say that the {ref} is {relation} the {other}?",
    "Is it true that the {ref} is {relation} the {other}?",
)
RELATION_FIND = (
    "What is {relation} the {other}?",
    "Which thing is {relation} the {other}?",
    "What can be seen {relation} the {other}?",
    "What do you see {relation} the {other}?",
    "Name the thing {relation} the {other}.",
    "Which shape is {relation} the {other}?",
)
RELATIONS: dict[str, tuple[str, ...]] = {
    "left": ("left of", "to the left of", "on the left of"),
    "right": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "lower than"),
}
"""Wordings of each relation; only the first of each also fits the open questions."""

EXISTENCE = (
    "Is there {a} {kind}?",
    "Is there {a} {kind} in the image?",
    "Is {a} {kind} present?",
    "Does the image contain {a} {kind}?",
    "Can you see {a} {kind}?",
    "Do you see {a} {kind} in the picture?",
    "Does the picture show {a} {kind}?",
    "Is {a} {kind} in this image?",
)
EXISTENCE_COLOR = (
    "Is there anything {color}?",
    "Is anything {color}?",
    "Do you see anything {color}?",
    "Is there something {color} in the picture?",
    "Is one of the things {color}?",
)
EXISTENCE_TEXT = (
    "Is there any text?",
    "Is there a word in the image?",
    "Does the picture contain any text?",
    "Can you see any writing?",
    "Is something written here?",
    "Is any text present?",
)
NEGATION = (
    "Is there not {a} {kind} in the image?",
    "Is there not {a} {kind}?",
    "Does the image not contain {a} {kind}?",
    "Is no {kind} present?",
    "Is there no {kind} in the picture?",
    "Is it true that there is no {kind}?",
)

READ = (
    "What does it say?",
    "What is written?",
    "Read the text.",
    "What does the text say?",
    "What is written in the image?",
    "Can you read the text?",
    "What text is shown?",
    "Please read what is written.",
)
READ_WORD = (
    "What word is written?",
    "What is the word?",
    "Which word is this?",
    "Read the word.",
    "What does the word say?",
)
READ_NUMBER = ("What number is written?", "What is the number?", "Which number is this?", "Read the number.")
READ_LETTERS = ("What letters are written?", "What are the letters?", "Read the letters.", "Which letters do you see?")
READ_TOP = (
    "What does the top line say?",
    "What is written at the top?",
    "Read the first line.",
    "What is the upper text?",
)
READ_BOTTOM = (
    "What does the bottom line say?",
    "What is written at the bottom?",
    "Read the second line.",
    "What is the lower text?",
)
READ_COLOR = ("What is written in {color}?", "What does the {color} text say?", "Read the {color} text.")
READ_FIRST = ("What is the first letter?", "Which letter comes first?", "With which letter does the text start?")
READ_LAST = ("What is the last letter?", "Which letter comes last?", "With which letter does the text end?")

SIZE = (
    "Is the {ref} large or small?",
    "Is the {ref} small or large?",
    "What size is the {ref}?",
    "How big is the {ref}?",
    "What is the size of the {ref}?",
    "Would you call the {ref} large or small?",
)
SIZE_BIGGEST = (
    "Which is bigger, the {ref} or the {other}?",
    "Which is larger, the {ref} or the {other}?",
    "What is bigger, the {ref} or the {other}?",
)
SIZE_SMALLEST = ("Which is smaller, the {ref} or the {other}?", "What is smaller, the {ref} or the {other}?")
SIZE_CHECK = ("Is the {ref} bigger than the {other}?", "Is the {ref} larger than the {other}?")

BACKGROUND = (
    "What color is the background?",
    "What is the background color?",
    "What is the color of the background?",
    "Which color is the background?",
    "On what color is it drawn?",
    "What color is behind everything?",
)
