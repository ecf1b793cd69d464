"""How near drawings come to real sketches: SSIM, L1, PSNR, FID, KID."""
