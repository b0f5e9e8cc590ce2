// Runs the calls of the official client for Node: `node run_calls.mjs URL PICTURE`, a PNG in base64. Prints one line of JSON for each call.

import assert from "node:assert";
import OpenAI, { toFile } from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "any", maxRetries: 0 });
const messages = [{ role: "user", content: "Hello" }];
const parameters = {
  type: "object",
  properties: { city: { type: "string", enum: ["Seoul", "Paris"] } },
  required: ["city"],
  additionalProperties: false,
};
const tool = { type: "function", function: { name: "get_weather", description: "The weather of a city.", parameters } };
const PICTURE = Buffer.from(process.argv[3], "base64");

function assertCity(text) {
  assert(["Seoul", "Paris"].includes(JSON.parse(text).city));
}

async function collect(stream) {
  const items = [];
  for await (const item of stream) items.push(item);
  return items;
}

const calls = [
  ["models", async () => assert((await client.models.list()).data.length > 0)],
  ["chat", async () => {
    const answer = await client.chat.completions.create({ model: "text", messages, max_completion_tokens: 8 });
    assert(answer.usage.completion_tokens > 0);
  }],
  ["chat, streamed", async () => {
    const options = { model: "text", messages, max_tokens: 8, stream: true, stream_options: { include_usage: true } };
    const chunks = await collect(await client.chat.completions.create(options));
    assert(chunks.at(-1).usage.completion_tokens > 0);
  }],
  ["chat, `n`", async () => {
    assert.equal((await client.chat.completions.create({ model: "text", messages, max_tokens: 8, n: 3 })).choices.length, 3);
  }],
  ["chat, `logprobs`", async () => {
    const options = { model: "text", messages, max_tokens: 4, logprobs: true, top_logprobs: 2 };
    assert((await client.chat.completions.create(options)).choices[0].logprobs.content.length > 0);
  }],
  ["chat, tools", async () => {
    const options = { model: "text", messages, max_tokens: 256, tools: [tool], tool_choice: "required" };
    const answer = await client.chat.completions.create(options);
    assertCity(answer.choices[0].message.tool_calls[0].function.arguments);
  }],
  ["chat, results of tools", async () => {
    const call = { id: "call_1", type: "function", function: { name: "get_weather", arguments: '{"city": "Seoul"}' } };
    const history = [...messages, { role: "assistant", content: null, tool_calls: [call] }];
    history.push({ role: "tool", tool_call_id: "call_1", content: "12 °C" });
    assert((await client.chat.completions.create({ model: "text", messages: history, max_tokens: 8, tools: [tool] })).choices.length === 1);
  }],
  ["chat, JSON schema", async () => {
    const response_format = { type: "json_schema", json_schema: { name: "city", schema: parameters, strict: true } };
    const answer = await client.chat.completions.create({ model: "text", messages, max_tokens: 256, response_format });
    assertCity(answer.choices[0].message.content);
  }],
  ["completions", async () => {
    assert((await client.completions.create({ model: "text", prompt: "Once upon a time", max_tokens: 8 })).choices[0].finish_reason);
  }],
  ["embeddings", async () => {
    const answer = await client.embeddings.create({ model: "embedding", input: ["one", "two"] });
    assert.equal(answer.data[0].embedding.length, answer.data[1].embedding.length);
  }],
  ["moderations", async () => {
    assert((await client.moderations.create({ input: "a forbiddenword here" })).results[0].flagged);
  }],
  ["responses", async () => {
    const answer = await client.responses.create({ model: "text", input: "Hello", max_output_tokens: 16 });
    assert.equal((await client.responses.retrieve(answer.id)).output_text, answer.output_text);
  }],
  ["responses, streamed", async () => {
    const options = { model: "text", input: "Hello", stream: true, max_output_tokens: 16 };
    const events = await collect(await client.responses.create(options));
    assert(["response.completed", "response.incomplete"].includes(events.at(-1).type));
  }],
  ["responses, tools", async () => {
    const options = { model: "text", input: "Weather?", tools: [{ type: "function", ...tool.function, strict: true }] };
    const answer = await client.responses.create({ ...options, tool_choice: "required", max_output_tokens: 256 });
    assertCity(answer.output.find((item) => item.type === "function_call").arguments);
  }],
  ["responses, background stream resumed", async () => {
    const options = { model: "text", input: "Hello", stream: true, background: true, max_output_tokens: 32 };
    const events = await collect(await client.responses.create(options));
    const rest = await collect(await client.responses.retrieve(events[0].response.id, { stream: true, starting_after: 2 }));
    assert.deepEqual(rest.map((event) => event.sequence_number), events.slice(3).map((event) => event.sequence_number));
  }],
  ["images", async () => {
    const answer = await client.images.generate({ model: "image", prompt: "a blue moon", size: "256x256" });
    assert.equal(Buffer.from(answer.data[0].b64_json, "base64").subarray(1, 4).toString(), "PNG");
  }],
  ["image edits", async () => {
    const image = await toFile(PICTURE, "moon.png", { type: "image/png" });
    const answer = await client.images.edit({ model: "image", prompt: "a red moon", image });
    assert.equal(Buffer.from(answer.data[0].b64_json, "base64").subarray(1, 4).toString(), "PNG");
  }],
];

for (const [call, run] of calls) {
  let detail = "";
  try {
    await run();
  } catch (error) {
    detail = `${error.name}: ${error.message}`.slice(0, 300);
  }
  console.log(JSON.stringify({ client: "openai (Node)", call, ok: !detail, detail }));
}
