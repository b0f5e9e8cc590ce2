// node order.mjs AMQP_URL [GENERATION_ID] [DOCUMENT]: orders a picture, prints each event of its job as a line of JSON,
// and leaves with 0 when the job is completed, with 1 when it is not. Names, forms and examples all come from the document.
import { randomInt } from 'node:crypto';
import amqp from 'amqplib';
import Ajv from 'ajv/dist/2020.js';
import formats from 'ajv-formats';
import { place, read } from './document.mjs';

const [url, generation = randomInt(2 ** 40), path = '../../docs/asyncapi.yaml'] = process.argv.slice(2);
const document = await read(path);
const ajv = formats(new Ajv({ strict: false }));

const message = (channel, name) => document.channels().get(channel).messages().get(name);
const order = structuredClone(message('image_generation', 'image_generation.nested').examples().all()[0].payload());
order.data.generation_id = Number(generation);
const job = `generation-${generation}`;

const kinds = document.channels().get('events').messages().all()
  .map((told) => ({ name: told.id(), fits: ajv.compile(told.payload().json()) }));

const line = await amqp.connect(url);
const channel = await line.createConfirmChannel();

// First the ear, then the word: no event can be missed.
const { queue } = await channel.assertQueue('', { exclusive: true });
await channel.bindQueue(queue, place(document, 'events').name, `#.${job}`);

const ended = new Promise((resolve) => {
  channel.consume(queue, ({ content }) => {
    const event = JSON.parse(content);
    const names = kinds.filter(({ fits }) => fits(event)).map(({ name }) => name);
    console.log(JSON.stringify({ step: event.step, kind: event.kind, percent: event.progress?.progress_percent, names }));
    if (event.step === 'job' && event.kind !== 'accepted') resolve(event.kind);
  }, { noAck: true });
});

const target = place(document, 'image_generation');
await channel.assertQueue(target.name, { durable: target.durable });
channel.sendToQueue(target.name, Buffer.from(JSON.stringify(order)), { persistent: true, contentType: 'application/json' });
await channel.waitForConfirms();

const how = await ended;
await line.close();
process.exit(how === 'completed' ? 0 : 1);
