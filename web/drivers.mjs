// The software driver that Chromium brings, for machines on which Dawn takes no other.

import { existsSync } from "node:fs";

/** The file that describes it; undefined where it is not installed. */
export const SWIFTSHADER = [
  "/usr/lib/chromium/vk_swiftshader_icd.json",
  "/usr/lib/chromium-browser/vk_swiftshader_icd.json",
].find(existsSync);

/** The environment of a process that has no other driver. */
export const SWIFTSHADER_ALONE = { VK_ICD_FILENAMES: SWIFTSHADER, VK_DRIVER_FILES: SWIFTSHADER };
