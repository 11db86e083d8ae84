"""Sources under the module name that older recorded configurations use; see `mnist_sweep.data`."""

from mnist_sweep.data.sources import emnist as emnist
from mnist_sweep.data.sources import image_folder as image_folder
