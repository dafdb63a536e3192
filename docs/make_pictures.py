"""Makes the README's pictures of the shipped generators: python docs/make_pictures.py"""

from pathlib import Path

from galiplib import load_generator, sample
from galiplib.images import contact_sheet, save_png

HERE = Path(__file__).parent
CAPTIONS = [
    "a red bird with black wings and a white belly in the snow",
    "a blue bird with yellow wings and an orange belly in a meadow",
    "a green bird with purple wings and a pink belly in the sky",
    "a white bird with brown wings and a yellow belly at sunset",
]
ONE_WORD = "a yellow bird with {} wings and a white belly in a meadow"

generator = load_generator()
made = sample(generator, generator.bridge, CAPTIONS, count=8, seed=0)
save_png(contact_sheet(made.images, columns=8, captions=CAPTIONS, scale=2), HERE / "samples.png", {"seed": "0..7"})

colours = ["red", "orange", "green", "blue", "purple", "pink", "brown", "black"]
made = sample(generator, generator.bridge, [ONE_WORD.format(colour) for colour in colours], count=1, seed=3)
sheet = contact_sheet(made.images, columns=8, captions=[f"{colour} wings" for colour in colours], scale=2)
save_png(sheet, HERE / "one_word.png", {"seed": "3"})

PHOTOGRAPHS = {
    "birds64": [
        "a small red bird with black wings",
        "a blue bird with a white belly",
        "a yellow bird with a black head",
        "a brown bird with a white breast",
        "a black bird",
        "a white bird on the water",
        "a green bird with a long beak",
        "a grey bird with an orange beak",
    ],
    "flowers64": [
        "this flower has bright yellow petals",
        "a flower with long pink petals",
        "a white flower with a yellow center",
        "a red flower with many layers of petals",
        "this purple flower has five petals",
        "an orange flower with dark spots",
        "a blue flower with thin petals",
        "a flower shaped like a bell",
    ],
}
for name, captions in PHOTOGRAPHS.items():
    generator = load_generator(name)
    made = sample(generator, generator.bridge, captions, count=8, seed=0)
    contact_sheet(made.images, columns=8, captions=captions).save(HERE / f"{name}.jpg", quality=90)
