"""Draws a make-believe pet dataset in the layout of the Oxford-IIIT Pet dataset, to try the toolkit offline.

Cats and dogs stand in front of busy backgrounds, each with an exact trimap (1 = pet, 2 = background, 3 = border). They
start as the drawings in the tables below, which are read into outlines, varied, moved into the picture and painted.
"""

import shutil
import sys
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageColor, ImageDraw, ImageFilter
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from runtime import cli  # noqa: E402  the path must be set first
from runtime.errors import UsageError  # noqa: E402
from runtime.options import option, whole_number  # noqa: E402

# colours: pairs of main and second fur colour; rough: of the outline; breed_id counts within the species (1 cat, 2
# dog); hidden: fillings in the drawings that this breed does without.
Breed = namedtuple("Breed", "name class_id species breed_id pattern rough iris hidden colours")
Part = namedtuple("Part", "layer fill light outline")  # outline: array (N, 2) of x, y; for the rest see the drawings
MARKER = "sample.txt"  # written last: says that a sample is complete, and which one it is

# fmt: off
BREEDS = (
    Breed("Drawn_Tabby", 3, 1, 2, "stripes", 0.8, "#96b446 #d6aa32 #6ea05a", "dog-tail mask",
          "#d48a48-#96501e #98948e-#4e4c4a #927454-#463224 #c4c2be-#68686a #5c544e-#28242a #e2be8c-#be8852"),
    Breed("drawn_terrier", 4, 2, 2, "saddle", 1.7, "#462c1a #322016", "cat-tail blaze long-ear",
          "#ece6dc-#c89c6a #ceaa76-#926a40 #b07642-#38302e #8a8886-#484646 #4a423e-#2c2828"),
    Breed("Drawn_Siamese", 1, 1, 1, "points", 0.6, "#5a96d6 #78b0e2", "dog-tail cheeks stripe",
          "#e6d6bc-#4e3a30 #eae4dc-#6c6a74 #f0dec4-#b06c40 #d6bea0-#3a2c28"),
    Breed("drawn_spaniel", 2, 2, 1, "patches", 1.3, "#54341c #3c2416", "cat-tail brow folded-ear",
          "#eee8e0-#7e4428 #ce944e-#a06430 #ece8e4-#302c2e #98502c-#683219 #f0e6d6-#ce8c46"),
)
HEADER = "#Image CLASS-ID SPECIES BREED ID\n#SPECIES: 1:Cat 2:Dog; a capital first letter means cat\n"
# The drawings. A shape is: layer, form, filling*brightness, numbers; "|" or a new line ends it. A filling is a coat of
# fur (see _coats) or a colour. Layers: "fur" is shaded to look round and makes up the silhouette, "snout" is fur that
# turns with the face, "mark" tints the fur beneath it, "ink" is drawn flat at the very end; "fur2" means: and its
# mirror image too. Forms: "limb" is a bent sausage through x, y, radius triples, "blob" a closed curve through x, y
# pairs, "oval" is x, y and two radii. Bodies stand on y = 1 and look right; first come the head's x, y and radius. In a
# head 0, 0 is the middle.
BODIES = {
    "sit": """.15 .17 .22 | fur limb cat-tail*.9 -.25 .92 .065 -.45 .92 .06 -.61 .8 .055 -.62 .58 .04
        fur limb dog-tail*.9 -.25 .9 .07 -.48 .62 .05 | fur limb leg*.7 .2 .52 .09 .25 .76 .06 .24 .93 .05 .33 .95 .045
        fur limb body -.12 .76 .25 -.03 .54 .22 .1 .32 .15 | mark oval pale*.9 .2 .5 .07 .16
        fur oval body*.97 -.12 .8 .23 .19 | fur oval leg*.95 -.02 .95 .12 .05
        fur limb leg .12 .5 .1 .14 .76 .065 .14 .93 .055 .23 .95 .045""",
    "front": """0 .17 .22 | fur limb cat-tail*.9 .2 .93 .065 .4 .93 .06 .54 .81 .055 .56 .6 .04
        fur limb dog-tail*.9 .22 .9 .07 .46 .62 .05 | fur limb body*.92 0 .76 .25 0 .52 .22 0 .3 .15
        fur2 oval body*.95 .2 .82 .14 .15 | fur2 oval leg*.9 .25 .95 .1 .05 | mark oval pale*.9 0 .5 .1 .17
        fur2 limb leg*1.05 .1 .5 .085 .09 .75 .06 .1 .94 .07""",
    "stand": """.5 .2 .2 | fur limb cat-tail*.9 -.5 .44 .065 -.66 .28 .06 -.68 .06 .055 -.58 -.08 .04
        fur limb dog-tail*.9 -.5 .4 .07 -.64 .06 .045 | fur limb leg*.7 -.32 .5 .11 -.37 .7 .06 -.32 .9 .05 -.22 .93 .04
        fur limb leg*.7 .3 .5 .1 .36 .7 .06 .37 .9 .05 .46 .93 .04 | fur limb body -.42 .47 .17 -.05 .5 .165 .28 .46 .18
        fur limb body .28 .44 .16 .46 .25 .13 | fur limb leg -.44 .5 .12 -.53 .72 .065 -.48 .93 .055 -.38 .96 .04
        fur limb leg .24 .52 .11 .22 .74 .065 .21 .93 .055 .31 .96 .04""",
    "lie": """.38 .46 .22 | fur limb cat-tail*.9 -.46 .88 .065 -.66 .95 .06 -.8 .93 .055 -.88 .8 .04
        fur limb dog-tail*.9 -.46 .86 .07 -.74 .84 .05 | fur limb leg*.7 .24 .82 .09 .42 .9 .06 .58 .91 .055
        fur limb body -.36 .76 .2 0 .73 .21 .28 .68 .19 | mark oval pale*.9 .36 .74 .08 .12
        fur oval body*.97 -.3 .82 .2 .15 | fur oval leg*.97 -.12 .95 .13 .05
        fur limb leg .18 .84 .1 .34 .93 .065 .52 .94 .06""",
    "curl": """.33 .76 .21 | fur limb body -.3 .78 .2 0 .68 .26 .28 .78 .2 | fur oval body*.95 -.24 .82 .22 .17
        fur limb cat-tail -.42 .9 .07 -.1 .97 .07 .2 .95 .05 | fur limb leg -.1 .95 .06 .1 .95 .055""",
    "portrait": """0 .38 .37 | fur limb body 0 1.05 .4 0 .85 .36 0 .62 .26 | mark oval pale*.9 .03 1 .16 .22""",
}
CAT = """fur2 blob ear .92 -.2 .88 -.8 .8 -1.3 .7 -1.28 .4 -.95 .1 -.7
    mark2 blob #c48c84 .8 -.5 .78 -1.05 .7 -1.02 .4 -.72
    fur blob body 0 -.82 .5 -.78 .88 -.35 1.02 .2 .68 .66 .25 .84 -.25 .84 -.68 .66 -1.02 .2 -.88 -.35 -.5 -.78
    mark oval mask 0 .2 .62 .62 | mark oval cheeks 0 .44 .46 .34 | mark2 limb stripe .1 -.35 .04 .12 -.75 .07
    mark2 limb stripe .3 -.4 .04 .38 -.7 .07 | mark2 limb stripe .66 .2 .03 .95 .1 .06 | ink2 oval rim .43 -.02 .25 .23
    ink2 oval iris .43 -.02 .21 .19 | ink2 oval pupil .43 -.02 .08 .16 | ink2 oval glint .37 -.09 .055 .055
    ink2 limb shut .22 0 .03 .43 .1 .05 .64 0 .03 | ink blob #d48888 -.12 .27 0 .24 .12 .27 0 .4
    ink2 limb #2c2020 0 .4 .025 .12 .55 .025 .27 .5 .02 | ink2 limb ivory .3 .36 .014 .8 .24 .014 1.35 .18 .006
    ink2 limb ivory .3 .5 .014 .8 .52 .014 1.3 .74 .006 | ink2 limb ivory .3 .43 .014 .8 .38 .014 1.35 .46 .006"""
DOG = """fur blob skull 0 -.9 .45 -.86 .72 -.45 .74 .1 .62 .5 .3 .72 -.3 .72 -.62 .5 -.74 .1 -.72 -.45 -.45 -.86
    fur2 blob folded-ear .25 -.78 .5 -1.08 .85 -1 1 -.6 .9 -.25 .66 -.5 | mark2 limb brow .2 -.4 .09 .5 -.36 .06
    mark limb blaze 0 -.85 .12 0 .1 .2 | fur2 limb long-ear*.9 .6 -.5 .2 .95 .1 .3 .92 .95 .24
    snout limb tongue 0 .75 .14 .02 .98 .15 | snout limb muzzle*1.08 0 .28 .36 0 .5 .44 | ink2 oval rim .36 -.16 .17 .16
    ink2 oval iris .36 -.16 .14 .13 | ink2 oval pupil .36 -.16 .09 .1 | ink2 oval glint .32 -.21 .04 .04
    ink2 limb shut .22 -.14 .03 .36 -.06 .05 .5 -.14 .03 | ink oval #1e1a1c 0 .3 .2 .15 | ink oval gray -.06 .25 .06 .03
    ink2 limb #2c2020 0 .42 .02 .03 .6 .025 .2 .7 .02"""
# What lies about and is no pet, about 1 wide, standing on y = 0. "a" and "b" are random colours; "body" is the pet's
# own fur: a network that only learns what fur looks like is misled by it.
THINGS = {
    "ball": """fur oval a 0 -.3 .3 .3 | mark limb b -.25 -.35 .06 0 -.25 .06 .25 -.35 .06""",
    "cushion": """fur blob a -.5 -.05 0 -.1 .5 -.05 .45 -.4 .5 -.75 0 -.7 -.5 -.75 -.45 -.4""",
    "pouffe": """fur blob body*.75 -.5 -.1 0 0 .5 -.1 .58 -.4 .3 -.6 -.3 -.6 -.58 -.4""",
    "rug": """fur oval b 0 -.1 1.1 .2 | fur oval a*1.1 0 -.1 .8 .13""",
    "books": """fur limb a -.4 -.1 .1 .4 -.1 .1 | fur limb b -.3 -.3 .1 .4 -.3 .1 | fur limb a -.3 -.5 .1 .2 -.5 .1""",
    "plant": """fur2 limb leaf*.8 .05 -.4 .05 .3 -.7 .12 .55 -.7 .02 | fur blob a*.9 -.2 0 .2 0 .3 -.45 0 -.48 -.3 -.45
        fur2 limb leaf .02 -.4 .05 .15 -.9 .12 .35 -1.2 .02 | fur limb leaf*1.1 0 -.4 .05 0 -.9 .12 -.1 -1.3 .02""",
    "post": """fur limb body*.8 0 -.05 .12 0 -1 .12 | fur oval b 0 0 .4 .1 | fur oval a 0 -1.05 .4 .12""",
    "sofa": """fur blob a*.9 -1.3 .1 1.3 .1 1.35 -.5 1.2 -1 0 -1.05 -1.2 -1 -1.35 -.5 | fur2 limb a 1.4 -.5 .2 1.4 .1 .2
        fur2 blob a*1.1 .03 .1 1.2 .1 1.2 -.35 .03 -.35""",
}
INKS = {"rim": "#1e1818", "pupil": "#0c0a0c", "glint": "white", "shut": "black", "tongue": "#e2787f", "leaf": "#4c7c40"}
SCENES = ("leaves grass", "sky grass", "plain wood", "plain carpet", "wood carpet", "carpet wood", "leaves wood")
OUTDOORS = ("leaves", "grass", "sky")
SURFACES = {  # usual colours, and noise as (strength, cell width, cell height) in 1/256 of the picture's side
    "grass": ("#648c46 #7c9a50 #b0985c #8c7a50 #dcdee2", (0.3, 2.2, 9), (0.15, 1.6, 1.6)),
    "leaves": ("#5a7846 #7e6a3c #a05a34", (0.35, 11, 11), (0.3, 4, 4)),
    "sky": ("#84b4e4 #a8b8c8 #dca878", (0.12, 50, 22), (0.08, 14, 12)),
    "wood": ("#a87c54 #8a6240 #c8a880 #6e5644 #b8b0a4", (0.12, 40, 2)),
    "carpet": ("#a44c48 #5c7490 #b8a888 #6c5c74", (0.17, 1.6, 1.6)),
    "plain": ("#d8d0c0 #a8b8b0 #c8a8a0 #7890a4", (0.05, 1.6, 1.6)),
}
# fmt: on


def _outline(form, numbers):
    """Outline (N, 2) of an "oval", a "blob" or a "limb"; the comment on the drawings explains the numbers."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    if form == "oval":
        return np.stack([np.cos(angle), np.sin(angle)], axis=1) * numbers[2:] + numbers[:2]
    if form == "blob":  # a Catmull-Rom curve, eight steps from one point to the next
        b, t = np.reshape(numbers, (-1, 1, 2)), np.arange(0, 1, 0.125)[:, None]
        a, c, d = (np.roll(b, shift, axis=0) for shift in (1, -1, -2))
        return (b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))).reshape(-1, 2)
    points = np.reshape(numbers, (-1, 3))  # the polynomial through these few points is the limb's bent middle line
    powers = np.vander(np.linspace(0, 1, len(points)))
    spine = np.vander(np.linspace(0, 1, 20), len(points)) @ np.linalg.solve(powers, points)
    centre, radius = spine[:, :2], np.maximum(spine[:, 2:], 1e-3)
    along = np.gradient(centre, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
    across, turn = along[:, ::-1] * [-1, 1], angle[1:20, None]  # either end is half a circle
    end = centre[-1] + radius[-1] * (np.cos(turn) * across[-1] + np.sin(turn) * along[-1])
    start = centre[0] - radius[0] * (np.cos(turn) * across[0] + np.sin(turn) * along[0])
    return np.concatenate([centre + radius * across, end, (centre - radius * across)[::-1], start])


def _read_drawing(text, rng, wobble, hidden=()):
    """Turn a drawing into parts; ``wobble`` moves fur a little at random, ``hidden`` names fillings to leave out."""
    parts = []
    for shape in filter(str.strip, text.replace("\n", "|").split("|")):
        layer, form, fill, *numbers = shape.split()
        fill, light = f"{fill}*1".split("*")[:2]
        numbers = np.array(numbers, dtype=float)
        numbers += rng.normal(0, wobble, len(numbers)) * (layer[:3] == "fur")
        if fill not in hidden:
            for sign in (1, -1) if layer[-1] == "2" else (1,):
                parts.append(Part(layer.rstrip("2"), fill, float(light), _outline(form, numbers) * [sign, 1]))
    return parts


def _pet_parts(rng, breed):
    """All parts of one pet in a random pose, in the drawings' units, back to front."""
    pose = str(rng.choice(["sit", "sit", "front", "stand", "stand", "lie", "lie", "curl", "portrait"]))
    asleep = pose == "curl" or (pose == "lie" and rng.random() < 0.2)
    hidden = [*breed.hidden.split(), *("rim iris pupil glint tongue" if asleep else "shut").split()]
    hidden += ["tongue"] * rng.integers(2)
    place, body = BODIES[pose].split("|", 1)
    *centre, radius = np.array(place.split(), dtype=float) * rng.normal(1, 0.06, 3)
    parts = _read_drawing(body, rng, 0.009, hidden)
    # The face looks at us or to the side: its features move and close up, the skull stays where it is.
    look, tilt = rng.uniform(-0.1, 0.34), rng.normal(0, 0.1)
    turn = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]]) * radius
    for part in _read_drawing(CAT if breed.species == 1 else DOG, rng, 0.025, hidden):
        face = part.layer in ("snout", "ink") or part.fill in ("cheeks", "mask")
        moved = part.outline * [1 - 0.7 * abs(look), 1] + [look, 0] if face else part.outline
        parts.append(part._replace(layer="fur" if part.layer == "snout" else part.layer, outline=moved @ turn + centre))
    return parts


def _place(rng, parts, size):
    """Move parts into a picture of ``size`` (w, h); returns them with the pixels per unit and the ground's y."""
    shape = np.array([[rng.uniform(0.9, 1.12) * rng.choice([-1, 1]), rng.normal(0, 0.04)], [0, 1]])
    fur = np.concatenate([part.outline @ shape for part in parts if part.layer == "fur"])
    low, high = fur.min(axis=0), fur.max(axis=0)
    scale = np.sqrt(rng.uniform(0.42, 0.95) * size[0] * size[1] / np.prod(high - low))  # share of the picture, box
    scale = float(min(scale, *(rng.uniform(0.93, 1.1) * np.array(size) / (high - low))))
    corner = (np.array(size) - scale * (high - low)) * [rng.uniform(0.05, 0.95), rng.uniform(0.5, 0.95)]
    if rng.random() < 0.2:  # cut by the left or right edge
        corner[0] += rng.choice([-1, 1]) * rng.uniform(0.1, 0.25) * size[0]
    if high[1] > 1.2:  # a portrait has no feet to show: it goes on below the picture
        corner[1] = size[1] - scale * (high[1] - low[1]) * rng.uniform(0.75, 0.92)
    move = corner - scale * low
    return [part._replace(outline=part.outline @ shape * scale + move) for part in parts], scale, move[1] + scale


def _noise(rng, size, cell_x, cell_y):
    """Smooth noise of about -1..1, (h, w) for ``size`` (w, h): random values, one per cell of pixels, blown up."""
    shape = int(size[1] / max(cell_y, 1)) + 2, int(size[0] / max(cell_x, 1)) + 2
    grid = Image.fromarray(rng.uniform(-1, 1, shape).astype(np.float32))
    return np.asarray(grid.resize(size, Image.BICUBIC))


def _to_image(array):
    return Image.fromarray(np.clip(array, 0, 255).astype(np.uint8))


def _surface(rng, size, kind, colour):
    """Floor, wall, sky or plants that fill a whole picture of ``size`` (w, h); returns float RGB (h, w, 3)."""
    unit, (y, x) = max(size) / 256, np.mgrid[: size[1], : size[0]].astype(np.float32)
    step = rng.uniform(12, 30) * unit
    tone = 1 + 0.1 * _noise(rng, size, 45 * unit, 45 * unit)
    for strength, cell_x, cell_y in SURFACES[kind][1:]:
        tone += strength * _noise(rng, size, cell_x * unit, cell_y * unit)
    if kind == "wood":  # every plank has its own tone and a dark gap below
        tone += rng.uniform(-0.14, 0.14, size[1])[(y / step).astype(int)] - 0.35 * (y % step < 1.2 * unit)
    elif kind == "carpet":
        tone += rng.choice([0, 0.12, 0.2]) * np.sign(np.sin(x * 3 / step) * np.sin(y * 3 / step))
    elif kind == "plain":
        tone += rng.choice([0, 0.07]) * np.sign(np.sin(x * 4 / step))  # striped wallpaper
    return colour * tone[..., None]


def _coats(rng, size, breed, main, second, scale, ground):
    """The pet's fur as textures as large as the picture, to be pasted through the masks of its parts: name -> image."""
    y, x = np.mgrid[: size[1], : size[0]].astype(np.float32) / scale
    y += 1 - ground / scale  # in the drawings' units, so that a Siamese knows where its legs are
    blotch = _noise(rng, size, 0.2 * scale, 0.2 * scale) + 0.3 * _noise(rng, size, 0.06 * scale, 0.06 * scale)
    strength, wave = rng.uniform(0.35, 0.9), rng.uniform(36, 60)
    body = limb = np.clip(0.3 * blotch, 0, 0.4)  # how much of the second colour there is
    if breed.pattern == "stripes":
        body = strength * np.clip(np.sin(wave * x + 7 * y + 1.6 * blotch) * 1.2, 0, 1)
        limb = strength * np.clip(np.sin(wave * y + 1.2 * blotch) * 1.2, 0, 1)
    elif breed.pattern == "points":
        limb = np.clip((y - 0.6) * 3.5 + 0.2 * blotch, 0.1, 1)
    elif breed.pattern == "patches":
        body = limb = np.clip((blotch - rng.uniform(-0.2, 0.3)) * 9, 0, 1)
    elif rng.random() < 0.7:
        body = np.clip((0.62 - y + 0.15 * blotch) * 4, 0, 1)  # a saddle: dark back above a light belly
        limb = body * 0.3
    pale, strands = 0.35 * main + np.array([162, 158, 152]), _noise(rng, size, 0.012 * scale, 0.05 * scale)
    relief, blend = (1 + rng.uniform(0.07, 0.16) * strands + 0.05 * blotch)[..., None], second - main
    body, limb = (_to_image((main + blend * part[..., None]) * relief) for part in (body, limb))
    dark, pale, main = (_to_image(colour * relief) for colour in (second, pale, main))
    tip, top = dark if breed.pattern == "points" else limb, dark if breed.pattern == "patches" else body
    muzzle = pale if rng.random() < 0.5 else main
    return {"body": body, "leg": limb, "dog-tail": limb, "cat-tail": tip, "ear": tip, "skull": top, "muzzle": muzzle,
            **dict.fromkeys(("mask", "stripe", "folded-ear", "long-ear"), dark),
            **dict.fromkeys(("pale", "cheeks", "brow", "blaze"), pale)}  # fmt: skip


def _paint(parts, fills, colour, cover=None):
    """Paint parts on the image ``colour`` (RGB), and the silhouette of those with fur on ``cover`` (L)."""
    for part in parts:
        low = np.maximum(np.floor(part.outline.min(axis=0)).astype(int) - 2, 0)
        high = np.minimum(np.ceil(part.outline.max(axis=0)).astype(int) + 2, colour.size)
        if (high <= low).any():
            continue  # outside the picture
        big = Image.new("L", tuple((high - low) * 2))  # twice as large, so that edges come out smooth
        ImageDraw.Draw(big).polygon([tuple(xy) for xy in (part.outline - low) * 2], fill=255)
        mask, box, fill = big.reduce(2), (*low.tolist(), *high.tolist()), fills.get(part.fill, part.fill)
        paint = fill.crop(box) if isinstance(fill, Image.Image) else Image.new("RGB", mask.size, fill)
        soft = mask.filter(ImageFilter.GaussianBlur(min(mask.size) * (0.06 if part.layer == "mark" else 0.15)))
        if part.layer == "fur":  # darker towards the rim, which makes it look round
            shade = soft.point([min(255, int(part.light * (140 + 105 * v / 255))) for v in range(256)])
            paint = ImageChops.multiply(paint, Image.merge("RGB", [shade] * 3))
            if cover:
                cover.paste(255, box, mask)
        elif part.layer == "mark":
            mask = soft.point([int(part.light * v) for v in range(256)])
        colour.paste(paint, box, mask)


def _scene(rng, size, fills, fur_colours, shadow):
    """Background with things lying about and the pet's ``shadow`` (an outline); returns float RGB (h, w, 3)."""

    def pick(kind=None):
        base = rng.uniform(40, 235) * 0.4 + rng.uniform(40, 235, 3) * 0.6
        if kind in OUTDOORS or (kind and rng.random() < 0.5):
            base = np.array(ImageColor.getrgb(str(rng.choice(SURFACES[kind][0].split()))))
        elif rng.random() < 0.3:  # as the fur, so that colour does not give the pet away
            base = fur_colours[rng.integers(2)]
        return np.clip(base + rng.normal(0, 10, 3), 15, 245)

    kinds, horizon = str(rng.choice(SCENES)).split(), rng.uniform(0.25, 0.65) * size[1]
    wall, floor = (_surface(rng, size, kind, pick(kind)) for kind in kinds)
    y, x = np.mgrid[: size[1], : size[0]]
    below = y > horizon + rng.normal(0, 0.05) * (x - size[0] / 2)
    colour = _to_image(np.where(below[..., None], floor, wall))
    names = [str(name) for name in rng.choice(sorted(set(THINGS) - {"sofa"}), rng.integers(0, 4))]
    for name in (["sofa"] if rng.random() < 0.25 and kinds[0] not in OUTDOORS else []) + names:
        unit, hues = rng.uniform(0.22, 0.42) * max(size), {key: tuple(pick().astype(int).tolist()) for key in "ab"}
        foot = np.array([rng.uniform(0, 1) * size[0], rng.uniform(horizon, size[1]) + 0.1 * unit])
        thing = [p._replace(outline=p.outline * unit + foot) for p in _read_drawing(THINGS[name], rng, 0.01)]
        _paint(thing, {**fills, **hues}, colour)
    _paint([Part("mark", "#14100e", rng.uniform(0.3, 0.7), shadow)], fills, colour)
    return np.asarray(colour, dtype=np.float32)


def _trimap(silhouette):
    """Exact trimap (mode L) of a ``silhouette`` (h, w) of bool: the border reaches equally far in and out."""
    pet = Image.fromarray(silhouette.astype(np.uint8))
    width = 2 * max(1, round(0.009 * max(pet.size))) + 1
    inner, outer = (np.asarray(pet.filter(kind(width))) for kind in (ImageFilter.MinFilter, ImageFilter.MaxFilter))
    return Image.fromarray(np.where(inner, 1, np.where(outer, 3, 2)).astype(np.uint8))


def draw_pet(rng, breed=BREEDS[0], size=(256, 256)):
    """Draw one picture of a pet.

    Args:
        rng: ``numpy.random.Generator``; it alone decides what is drawn.
        breed: One of ``BREEDS``.
        size: Width and height in pixels.

    Returns:
        The picture (``PIL.Image``, mode RGB) and its trimap (mode L).
    """
    parts, scale, ground = _place(rng, _pet_parts(rng, breed), size)
    pair = np.array([ImageColor.getrgb(text) for text in str(rng.choice(breed.colours.split())).split("-")])
    main, second = np.clip(pair + rng.normal(0, 8) + rng.normal(0, 5, (2, 3)), 12, 250)
    fills = {**INKS, **_coats(rng, size, breed, main, second, scale, ground)}
    fills["iris"] = str(rng.choice(breed.iris.split()))
    colour, cover = fills["body"].copy(), Image.new("L", size)
    _paint([part for part in parts if part.layer != "ink"], fills, colour, cover)

    # Fetch every pixel of the pet from a little aside: its outline and the joints of its parts become hairy.
    y, x = np.mgrid[: size[1], : size[0]]
    rough = 0.012 * scale * breed.rough * _noise(rng, (2 * size[0], size[1]), 0.014 * scale, 0.03 * scale)
    fetch = (np.clip(y + rough[:, : size[0]], 0, size[1] - 1).astype(int),
             np.clip(x + rough[:, size[0] :], 0, size[0] - 1).astype(int))  # fmt: skip
    alpha = np.asarray(cover)[fetch]
    soft = np.asarray(cover.filter(ImageFilter.GaussianBlur(0.06 * scale)), dtype=np.float32) / 255
    down, right = np.gradient(soft)  # the light falls from above and from one side
    shade = 1.1 + 0.04 * scale * (down + rng.uniform(-1, 1) * right)
    fur = np.asarray(colour)[fetch] * np.clip(shade, 0.4, 1.5)[..., None]

    reach = np.concatenate([part.outline[:, 0] for part in parts if part.layer == "fur"])
    shadow = _outline("oval", np.array([np.median(reach), ground - 0.03 * scale, np.ptp(reach) / 2, 0.08 * scale]))
    back = _scene(rng, size, fills, (main, second), shadow)
    picture = _to_image(back + (fur - back) * (alpha[..., None] / 255))
    _paint([part for part in parts if part.layer == "ink"], fills, picture)
    # Light of the day: brightness, colour cast, a slope across the picture, and the camera's noise.
    bright = rng.uniform(0.85, 1.15) + rng.uniform(-0.2, 0.2) * x / size[0] + rng.uniform(-0.2, 0.2) * y / size[1]
    picture = np.asarray(picture) * (bright[..., None] * rng.normal(1, 0.05, 3))
    picture = _to_image(picture + rng.normal(0, rng.uniform(1.5, 7), picture.shape))
    return picture, _trimap(alpha > 127)


def _draw_number(seed, number, side):
    """Picture ``number`` of a sample: name, row of list.txt, picture, trimap. Nothing but the arguments matters."""
    rng, breed = np.random.default_rng([seed, number]), BREEDS[number % len(BREEDS)]
    longer = round(side * rng.uniform(0.9, 1.25))
    shorter = longer if rng.random() < 0.12 else round(max(longer * rng.uniform(0.7, 0.92), 0.78 * side))
    size = (longer, shorter) if rng.random() < 0.55 else (shorter, longer)
    row = f"{breed.name}_{number // len(BREEDS) + 1} {breed.class_id} {breed.species} {breed.breed_id}"
    return row, *draw_pet(rng, breed, size)


def draw_sample_dataset(root, count=240, seed=42, side=256):
    """Draw a dataset in the layout of the Oxford-IIIT Pet dataset; do nothing where the very same is drawn already.

    Every third picture of a breed is for test. A larger count only adds pictures. Returns ``root``.

    Args:
        root: Folder to make.
        count: Number of pictures, at least 8.
        seed: Whole number from 0 on; the same arguments give the same files.
        side: Usual longer side of a picture in pixels, at least 32.

    Raises:
        ValueError: A number is too small.
        FileExistsError: ``root`` holds something else, which is left alone.
    """
    if count < 8 or seed < 0 or side < 32:
        raise ValueError(f"count {count}, seed {seed}, side {side}: they must be at least 8, 0 and 32")
    root, wanted = Path(root), f"drawn pets: count {count} seed {seed} side {side}\n"
    if (root / MARKER).is_file() and (root / MARKER).read_text() == wanted:
        return root
    if root.exists() and (root.is_file() or any(root.iterdir())):
        raise FileExistsError(f"{root} holds something other than this sample and is left alone: choose another folder")
    home = root.resolve()
    draft = home.with_name(f".{home.name}.unfinished")
    shutil.rmtree(draft, ignore_errors=True)  # left by a broken-off run
    for folder in ("images", "annotations/trimaps"):
        (draft / folder).mkdir(parents=True)
    rows = []
    for number in tqdm(range(count), desc="drawing", unit="image", disable=None):  # no bar unless on a terminal
        row, picture, trimap = _draw_number(seed, number, side)
        picture.save(draft / "images" / f"{row.split()[0]}.jpg", quality=90)
        trimap.save(draft / "annotations" / "trimaps" / f"{row.split()[0]}.png")
        rows.append(row + "\n")
    test = {row for number, row in enumerate(rows) if number // len(BREEDS) % 3 == 1}
    for name, part in (("list", {HEADER, *rows}), ("trainval", {*rows} - test), ("test", test)):
        (draft / "annotations" / f"{name}.txt").write_text("".join(sorted(part)))  # "#" sorts first
    (draft / MARKER).write_text(wanted)
    if home.exists():
        home.rmdir()  # empty, as seen above
    draft.rename(home)
    return root


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """The flags of this script."""

    data_path: str = option("demo/dataset", "folder to make", metavar="DIR")
    count: int = option(240, "number of images", whole_number(8), metavar="N")
    seed: int = option(42, "the same arguments give the same files", whole_number(0), metavar="N")
    side: int = option(256, "usual longer side of an image in pixels", whole_number(32, 4096), metavar="PX")


def main(argv=None):
    """The command line: draws the sample and says so in one line."""
    parser = cli.Parser(
        "sample_pets.py", "Draw a small pet dataset to try the toolkit with.", SampleConfig, folder="tools"
    )
    config = SampleConfig(**parser.parse_overrides(argv))
    what = "are there already, nothing to do" if (Path(config.data_path) / MARKER).exists() else "drawn"
    try:
        root = draw_sample_dataset(config.data_path, config.count, config.seed, config.side)
    except (ValueError, FileExistsError) as error:
        raise UsageError(str(error)) from None
    print(f"{root}: {config.count} images {what}")


if __name__ == "__main__":
    cli.run(main)
