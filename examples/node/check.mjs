// node check.mjs [DOCUMENT]: what AsyncAPI's own parser says of the document, in one line of JSON.
import { read } from './document.mjs';

const document = await read(process.argv[2] ?? '../../docs/asyncapi.yaml');
const replies = document.allOperations().filter((operation) => operation.reply());
console.log(JSON.stringify({
  title: document.info().title(),
  channels: document.allChannels().length,
  operations: document.allOperations().length,
  replies: replies.length,
  messages: document.components().messages().length,
}));
