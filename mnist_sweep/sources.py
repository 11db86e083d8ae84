"""Former home of these sources, for configurations that name it."""

from mnist_sweep.data.sources import emnist as emnist
from mnist_sweep.data.sources import image_folder as image_folder
