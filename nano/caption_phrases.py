"""Wordings of questions about photographs with captions; braces are filled by :mod:`nano.caption_qa`."""

from __future__ import annotations

IS_THERE = (
    "Is there {thing} in the image?",
    "Is there {thing} in the picture?",
    "Is there {thing}?",
    "Do you see {thing}?",
    "Can you see {thing} in the photo?",
    "Does the picture show {thing}?",
    "Does the image contain {thing}?",
)
ARE_THERE = ("Are there any {things} in the picture?", "Are there {things} in the image?", "Do you see any {things}?")
DOING = (
    "What is the {who} doing?",
    "What is the {who} doing in the picture?",
    "What does the {who} do?",
)
MANY_DOING = ("What are the {who} doing?", "What are the {who} doing in the picture?")
ANY_DOING = (
    "What is happening in the picture?",
    "What is going on?",
    "What is happening here?",
    "What is going on in this photo?",
)
WHERE = ("Where is the {who}?", "Where is the {who} in the picture?")
ANY_WHERE = ("Where was this taken?", "What is the setting?", "Where does this take place?", "Where is this?")
COLOR = (
    "What color is the {thing}?",
    "What is the color of the {thing}?",
    "Which color is the {thing}?",
    "What color is the {thing} in the picture?",
)
COLORS_OF = ("What color are the {thing}?", "What is the color of the {thing}?")
WORN = (
    "What color is the {who}'s {thing}?",
    "What color {thing} is the {who} wearing?",
    "Which color is the {who}'s {thing}?",
)
WORN_PAIR = ("What color are the {who}'s {thing}?", "What color {thing} is the {who} wearing?")
HOW_MANY = (
    "How many {things} are there?",
    "How many {things} are in the picture?",
    "How many {things} do you see?",
    "How many {things} can you see in the photo?",
)
WHO = ("Who is in the picture?", "Who is in the photo?", "Who can be seen?", "Who do you see?")
WHICH_ANIMAL = (
    "What animal is this?",
    "Which animal is in the picture?",
    "What animal can you see?",
    "What kind of animal is in the image?",
)
WEARING = ("What is the {who} wearing?", "What does the {who} wear?")
SILENT_QUESTIONS = (
    "What is the name of the {who}?",
    "What is the {who} called?",
    "How old is the {who} exactly?",
    "Why is the {who} here?",
    "What is the {who} thinking?",
    "What will the {who} do next?",
    "Where does the {who} live?",
    "What does the {who} say?",
    "Who took this picture?",
    "When was this picture taken?",
    "In which year was this taken?",
    "What time is it?",
    "What day is it?",
    "In which country is this?",
    "In which city was this taken?",
    "Which town is this?",
    "What happened before this?",
    "What does it smell like?",
    "How cold is it?",
    "Who owns the {who}?",
    "Why was this picture taken?",
    "How much did this cost?",
    "What is behind the camera?",
    "What language do they speak?",
    "Is the {who} married?",
    "What is the phone number?",
    "What music is playing?",
    "How far is it to the next town?",
)
