"""How close drawings are to real sketches: SSIM, L1, PSNR, FID, KID."""
