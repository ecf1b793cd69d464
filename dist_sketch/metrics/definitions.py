"""The metrics that are reported: their names, directions and meanings."""

from typing import NamedTuple


class Metric(NamedTuple):
    """How one figure of metrics.json is printed."""

    key: str
    label: str
    sign: int  # +1: higher is better
    digits: int
    meaning: str


METRICS = (
    Metric("ssim", "SSIM", 1, 3, "Structural similarity to the real sketch, mean over the images; 1 is identical"),
    Metric("psnr", "PSNR", 1, 2, "Peak signal-to-noise ratio against the real sketch in dB, mean over the images"),
    Metric("l1", "L1", -1, 4, "Mean absolute difference from the real sketch"),
    Metric("fid_64", "FID-64", -1, 2, "Fréchet distance of 64 Inception features (first max pooling)"),
    Metric("fid_192", "FID-192", -1, 2, "Fréchet distance of 192 Inception features (second max pooling)"),
    Metric("fid_768", "FID-768", -1, 3, "Fréchet distance of 768 Inception features (before the auxiliary head)"),
    Metric("fid_2048", "FID-2048", -1, 1, "Fréchet distance of 2048 Inception features (last pooling): the usual FID"),
    Metric("kid", "KID", -1, 4, "Kernel Inception distance, unbiased, so it may fall below 0 by chance"),
)
