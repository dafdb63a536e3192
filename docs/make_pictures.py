"""Makes the README's two pictures from the shipped generator: python docs/make_pictures.py"""

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
