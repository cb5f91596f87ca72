"""What is known of each named data set before any file is read."""

from feddgm_flwr.core.images import ImageSpec

# Class names serve as folder names and in comma-separated lists: no slash, no comma.
DIGITS = tuple("0123456789")
FASHION = (
    *("T-shirt", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
CIFAR100 = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge
    bus butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud
    cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox
    girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man
    maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree
    pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
    road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel
    streetcar sunflower sweet_pepper table tank telephone television tiger tractor train
    trout tulip turtle wardrobe whale willow_tree wolf woman worm
    """.split()  # noqa: SIM905
)

SPECS: dict[str, ImageSpec] = {
    "mnist5k": ImageSpec(1, 28, DIGITS, mean=(0.1315,), std=(0.3088,)),
    "digits": ImageSpec(1, 16, DIGITS, mean=(0.3050,), std=(0.3185,)),
    "mnist": ImageSpec(1, 28, DIGITS, mean=(0.1307,), std=(0.3081,)),
    "fashion-mnist": ImageSpec(1, 28, FASHION, mean=(0.2860,), std=(0.3530,), flip=True),
    "cifar10": ImageSpec(
        channels=3,
        size=32,
        classes=CIFAR10,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        flip=True,
    ),
    "cifar100": ImageSpec(
        channels=3,
        size=32,
        classes=CIFAR100,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        flip=True,
    ),
    "svhn": ImageSpec(
        channels=3,
        size=32,
        classes=DIGITS,
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
    ),
}
"""Mean and deviation are those of the training part."""
