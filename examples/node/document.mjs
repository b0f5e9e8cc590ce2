// Reads the AsyncAPI document. Prints what its parser has to say; throws when it is more than advice about the version.
import { readFile } from 'node:fs/promises';
import { Parser } from '@asyncapi/parser';

const ADVICE = new Set(['asyncapi-latest-version']);

export async function read(path) {
  const { document, diagnostics } = await new Parser().parse(await readFile(path, 'utf8'));
  const wrong = diagnostics.filter(({ code }) => !ADVICE.has(code));
  for (const { code, message, path: place } of wrong) console.error(`${code} at ${place.join('.')}: ${message}`);
  if (!document || wrong.length) throw new Error(`${path}: ${wrong.length} remarks of the AsyncAPI parser`);
  return document;
}

// Queue or exchange of a channel, as its AMQP binding names it.
export function place(document, channel) {
  const binding = document.channels().get(channel).bindings().get('amqp').value();
  return binding.is === 'queue' ? binding.queue : binding.exchange;
}
