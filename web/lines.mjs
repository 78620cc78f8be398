// JSON lines on standard input and output, for the programs that `foveate verify --host` starts.

import readline from "node:readline";

/** The exit code that says: what this program needs is not there. */
export const MISSING = 77;

/** Ends the program with a remedy. */
export function missing(text) {
  console.error(`foveate host: ${text}`);
  process.exit(MISSING);
}

/** Answers each line of the input with one line, in order, until the input ends. */
export async function serve(answer) {
  const lines = readline.createInterface({ input: process.stdin, crlfDelay: Infinity });
  for await (const line of lines) {
    let reply;
    try {
      reply = await answer(JSON.parse(line));
    } catch (error) {
      reply = { error: String(error?.message ?? error) };
    }
    await new Promise((done) => process.stdout.write(`${JSON.stringify(reply)}\n`, done));
  }
}
