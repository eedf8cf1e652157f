"""What the stem's 1,000 ImageNet classes are called in answers, and what kinds of thing they are."""

from __future__ import annotations

from functools import cache

from nano.captions import article

_NAMES: dict[int, str] = {
    7: "rooster", 21: "kite bird", 27: "newt", 31: "tree frog", 67: "diamondback rattlesnake", 75: "black widow spider",
    87: "grey parrot", 97: "duck", 101: "elephant", 134: "crane bird", 158: "toy terrier", 160: "Afghan hound",
    164: "bluetick hound", 168: "redbone hound", 191: "Airedale terrier", 192: "cairn terrier", 195: "Boston terrier",
    200: "Tibetan terrier", 204: "Lhasa apso", 217: "springer spaniel", 235: "German shepherd", 242: "boxer dog",
    248: "husky", 252: "affenpinscher", 260: "chow chow", 263: "corgi", 264: "Cardigan corgi", 281: "tabby cat",
    282: "tiger cat", 284: "Siamese cat", 296: "polar bear", 321: "admiral butterfly", 322: "ringlet butterfly",
    323: "monarch butterfly", 326: "blue butterfly", 332: "Angora rabbit", 339: "sorrel horse", 341: "pig",
    358: "polecat", 371: "patas monkey", 375: "colobus monkey", 378: "capuchin monkey", 380: "titi monkey",
    383: "ring-tailed lemur", 387: "red panda", 389: "barracouta", 392: "angelfish", 393: "clownfish", 395: "garfish",
    397: "pufferfish", 404: "airplane", 408: "amphibious vehicle", 412: "trash can", 428: "wheelbarrow",
    436: "station wagon", 437: "lighthouse", 440: "beer bottle", 444: "tandem bicycle", 458: "brass plaque",
    460: "breakwater", 463: "bucket", 466: "bullet train", 468: "taxi", 477: "tool kit", 480: "cash machine",
    482: "cassette player", 487: "mobile phone", 493: "chest of drawers", 494: "bell", 498: "cinema", 508: "keyboard",
    513: "trumpet", 517: "construction crane", 528: "telephone", 540: "oil rig", 550: "espresso machine",
    553: "file cabinet", 555: "fire truck", 561: "forklift", 564: "four-poster bed", 567: "frying pan",
    570: "gas mask", 579: "grand piano", 589: "hair dryer", 590: "hand-held computer", 608: "pair of jeans",
    610: "T-shirt", 612: "rickshaw", 620: "laptop", 626: "lighter", 628: "ocean liner", 630: "loafer shoe",
    632: "loudspeaker", 633: "magnifying glass", 635: "compass", 638: "swimsuit", 639: "swimsuit", 650: "microphone",
    651: "microwave oven", 661: "Model T car", 664: "computer monitor", 666: "mortar bowl", 667: "graduation cap",
    670: "motor scooter", 672: "tent", 673: "computer mouse", 681: "notebook computer", 687: "pipe organ",
    697: "pair of pajamas", 705: "train car", 714: "guitar pick", 724: "pirate ship", 726: "carpenter's plane",
    729: "dish rack", 734: "police van", 737: "soda bottle", 738: "flower pot", 744: "missile", 746: "hockey puck",
    751: "race car", 757: "camper van", 759: "camera", 760: "refrigerator", 761: "remote control", 767: "eraser",
    769: "ruler", 776: "saxophone", 778: "weighing scale", 780: "sailing ship", 782: "screen", 800: "slot machine",
    807: "solar panel", 815: "spider web", 818: "spotlight", 822: "steel drum", 829: "tram", 831: "sofa",
    832: "stupa", 834: "suit", 836: "pair of sunglasses", 837: "pair of sunglasses", 840: "mop",
    842: "pair of swimming trunks", 844: "light switch", 847: "tank", 850: "teddy bear", 851: "television",
    853: "thatched roof", 859: "toaster", 864: "tow truck", 867: "truck", 878: "typewriter", 881: "upright piano",
    882: "vacuum cleaner", 884: "vaulted ceiling", 887: "priest's robe", 895: "military plane", 896: "sink",
    897: "washing machine", 906: "necktie", 908: "airplane wing", 911: "wool", 912: "wooden fence", 913: "shipwreck",
    914: "sailboat", 916: "web page", 918: "crossword puzzle", 920: "traffic light", 921: "book cover",
    925: "clear soup", 926: "hot pot", 927: "trifle", 929: "popsicle", 930: "loaf of French bread", 934: "hot dog",
    936: "cabbage", 948: "green apple", 959: "plate of pasta carbonara", 962: "meat loaf", 964: "pot pie",
    966: "glass of red wine", 967: "cup of espresso", 968: "cup", 970: "mountain", 972: "cliff", 975: "lake",
    978: "seashore", 981: "baseball player", 984: "field of rapeseed", 986: "lady's slipper orchid",
    987: "ear of corn", 989: "rose hip", 990: "horse chestnut", 998: "ear of corn", 999: "roll of toilet paper",
}  # fmt: skip
"""Clearer names than the first one in WordNet."""

_UNCOUNTED = frozenset({490, 885, 911, 924, 925, 927, 928, 935, 958, 960, 961, 962, 969})
"""Classes that take no article."""

_KINDS: dict[str, str] = {
    "fish": "0-6 389-397",
    "bird": "7-24 80-100 127-146",
    "amphibian": "25-32",
    "turtle": "33-37",
    "lizard": "38-48",
    "crocodile": "49-50",
    "dinosaur": "51",
    "snake": "52-68",
    "spider": "72-77",
    "shellfish": "112 116-126",
    "snail": "113-115",
    "whale": "147-148",
    "seal": "149-150",
    "dog": "151-268",
    "wolf": "269-275",
    "fox": "277-280",
    "cat": "281-285",
    "big cat": "286-293",
    "bear": "294-297",
    "beetle": "300-307",
    "insect": "308-320",
    "butterfly": "321-326",
    "rabbit": "330-332",
    "rodent": "333 335-338",
    "horse": "339-340",
    "pig": "341-343",
    "cattle": "345-347",
    "sheep": "348-349",
    "antelope": "350-353",
    "camel": "354-355",
    "weasel": "356-362",
    "ape": "365-369",
    "monkey": "370-382",
    "lemur": "383-384",
    "elephant": "101 385-386",
    "panda": "387-388",
    "mammal": "102-106 276 298-299 334 344 363-364",
    "sea animal": "107-111 327-329 973",
    "aircraft": "404-405 417 895 908",
    "spacecraft": "812",
    "car": "407 436 468 511 609 627 656 661 717 751 817",
    "truck": "555 569 675 864 867",
    "bus": "654 779 874",
    "train": "466 547 565 705 820 829",
    "bicycle": "444 671 870 880",
    "motorcycle": "665 670",
    "boat": "472 484 510 554 576 625 628 724 780 814 833 871 914",
    "ship": "403",
    "vehicle": "408 428 450 537 573 575 586 595 603 612 660 690 734 757 802 803 847 866",
    "musical instrument": (
        "401-402 420 432 486 494 513 541 546 558 566 577 579 593-594 641-642 683-684 687 699 776 "
        "822 875 881 889"
    ),
    "ball": "429-430 522 574 722 768 805 852 890",
    "clock": "409 530 531 604 826 835 892",
    "computer": "508 527 590 620 664 673 681 782 878",
    "telephone": "487 528 707",
    "camera": "732 759",
    "bottle": "440 720 737 898 907",
    "cup": "504 968",
    "piece of furniture": "423 431 453 493 495 516 520 526 532 548 553 559 564 703 736 765 831 857 894",
    "kitchen tool": "473 499 505 521 544 550 567 618 647 651 659 766 809 813 827 828 849 859 891 909-910",
    "tool": "477 491 512 587 596 695 730-731 740 783-784 792",
    "weapon": "413 471 657 744 763-764",
    "hat": "433 439 452 515 518 560 667 715 793 808",
    "shoe": "502 514 630 770 774",
    "piece of clothing": (
        "399-400 411 443 445 451 457 459 474 501 529 568 578 601 608 610 614 617 638-639 "
        "652 655 658 689 697 735 775 806 824 834 841-842 869 887 906"
    ),
    "bag": "414 636 728 748",
    "building": (
        "410 415 424-425 437 442 449 454 467 483 497-498 500 509 580 582 624 634 663 668 "
        "698 727 743 762 788 832 853 858 860 865 915"
    ),
    "bridge": "821 839 888",
    "fence": "489 716 912",
    "fruit": "948-957",
    "vegetable": "936-946",
    "mushroom": "947 991-997",
    "flower": "985-986",
    "food": "924-935 959-965",
    "drink": "966-967 969",
    "landscape": "970 972 974-980",
    "person": "981-983",
}  # fmt: skip

ANIMALS: frozenset[str] = frozenset(list(_KINDS)[: list(_KINDS).index("sea animal") + 1])
"""Kinds that are animals."""


@cache
def _lemmas() -> tuple[str, ...]:
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return tuple(info.index_to_description(i).split(",")[0] for i in range(1000))


def name(index: int) -> str:
    """What class ``index`` is called, without an article: ``golden retriever``."""
    return _NAMES.get(index) or _lemmas()[index]


def with_article(index: int) -> str:
    """``a golden retriever``; things that are not counted stand alone."""
    return name(index) if index in _UNCOUNTED else f"{article(name(index).lower())} {name(index)}"


@cache
def _kind_of() -> dict[int, str]:
    kinds: dict[int, str] = {}
    for kind, spans in _KINDS.items():
        for span in spans.split():
            first, _, last = span.partition("-")
            for index in range(int(first), int(last or first) + 1):
                kinds.setdefault(index, kind)
    return kinds


def kind(index: int) -> str | None:
    """The everyday kind that class ``index`` belongs to (``dog``), or ``None``."""
    return _kind_of().get(index)


@cache
def of_kind(kind: str) -> tuple[int, ...]:
    """The classes of an everyday kind, in their order."""
    return tuple(index for index in sorted(_kind_of()) if _kind_of()[index] == kind)


def kinds() -> tuple[str, ...]:
    """All kinds."""
    return tuple(_KINDS)


def all_names() -> tuple[str, ...]:
    """What the 1,000 classes are called, in their order."""
    return tuple(name(index) for index in range(len(_lemmas())))
