// Even steps of lightness in OKLab, so that equal steps look equal.

const oklch = (L, C, h) => {
  const a = C * Math.cos(h), b = C * Math.sin(h);
  const l = (L + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (L - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (L - 0.0894841775 * a - 1.2914855480 * b) ** 3;
  return [4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.7076147010 * s].map((x) => {
    const c = Math.min(1, Math.max(0, x));
    return Math.round(255 * (c <= 0.0031308 ? 12.92 * c : 1.055 * c ** (1 / 2.4) - 0.055));
  });
};

/** 256 colours from little to much, as red, green and blue. */
export const ramp = (night) => Array.from({ length: 256 }, (_, i) => {
  const t = i / 255;
  const L = night ? 0.225 + 0.725 * t : 0.965 - 0.685 * t;
  const C = night ? 0.03 + 0.095 * Math.sin(Math.PI * (0.04 + 0.84 * t)) : 0.006 + 0.145 * Math.sin(Math.PI * 0.88 * t) ** 1.25;
  const hue = night ? 262 - 165 * t ** 1.4 : 252 + 28 * t;
  return oklch(L, C, hue * Math.PI / 180);
});
