// Drives the ollama client for JavaScript against the server named on the command line; prints what it got as JSON.
import { Ollama } from '../node/node_modules/ollama/dist/index.mjs'

const client = new Ollama({ host: process.argv[2] })
const varying = new Set(['created_at', 'total_duration', 'load_duration', 'prompt_eval_duration', 'eval_duration', 'id', 'modified_at', 'expires_at'])
const plain = (value) => JSON.parse(JSON.stringify(value, (key, item) => (varying.has(key) ? undefined : item)))
const messages = [{ role: 'user', content: 'What is the weather?' }]
const tools = [{ type: 'function', function: { name: 'weather', description: 'Tells it.', parameters: { type: 'object', properties: {} } } }]
const options = { num_predict: 5 }

async function listed(stream) {
  const pieces = []
  for await (const piece of await stream) pieces.push(piece)
  return pieces
}

async function failure(call) {
  try {
    await call()
  } catch (error) {
    return [error.name, error.status_code, error.message]
  }
  return 'no error'
}

async function aborted() {
  const stream = await client.generate({ model: 'a', prompt: 'x', options: { num_predict: 30000 }, stream: true })
  return failure(async () => {
    for await (const _ of stream) stream.abort()
  })
}

const got = {
  generate: await client.generate({ model: 'a', prompt: 'x', options }),
  streamed: await listed(client.generate({ model: 'a', prompt: 'x', options, stream: true })),
  chat: await client.chat({ model: 'b', messages, options }),
  chatStreamed: await listed(client.chat({ model: 'b', messages, options, stream: true })),
  tools: await client.chat({ model: 'sighted', messages, tools }),
  embed: await client.embed({ model: 'embedder', input: ['x', 'y'] }),
  list: await client.list(),
  unknown: await failure(() => client.chat({ model: 'nobody', messages })),
  embedder: await failure(() => client.generate({ model: 'embedder', prompt: 'x' })),
  aborted: (await aborted())[0],
}
console.log(JSON.stringify(plain(got)))
