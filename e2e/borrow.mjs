// An agent that uses keys without seeing them: it leases over the stdio relay, as in lend.mjs, and writes down all that
// passes between it and keylease, but for the one field that may hold a key.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { appendFileSync, readFileSync } from 'node:fs'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js'

export const { E2E_KEYLEASE: command, E2E_FAR: far, HOME: home, PATH: path } = process.env
export const keys = JSON.parse(readFileSync(`${far}/keys.json`))
export const origins = JSON.parse(readFileSync(`${far}/origins.json`))

// note writes a message of the protocol down. The only places for a value are those of a value lease's result: there
// it is left out, once in each of the two copies.
export function note (who, message) {
  const text = JSON.stringify(message, (name, value) => {
    if (name === 'value' && typeof value === 'string') return '[the value]'
    if (name === 'text' && typeof value === 'string' && value.startsWith('{')) {
      try {
        const copy = JSON.parse(value)
        if (copy.delivery === 'value') return JSON.stringify({ ...copy, value: '[the value]' })
      } catch {}
    }
    return value
  })
  appendFileSync(`${home}/transcript-${who}.jsonl`, text + '\n')
}

// agent is a client of keylease under a name of its own.
export async function agent (name, { env = {}, noted = true } = {}) {
  const transport = new StdioClientTransport({ command, args: ['mcp', '--as', name], env: { HOME: home, PATH: path, ...env } })
  const client = new Client({ name, version: '1' })
  const send = transport.send.bind(transport)
  transport.send = message => { if (noted) note(name, message); return send(message) }
  await client.connect(transport)
  const receive = transport.onmessage
  transport.onmessage = (message, extra) => { note(name, message); receive(message, extra) }
  await client.listTools()
  const call = async (tool, args) => {
    const { isError, structuredContent } = await client.callTool({ name: tool, arguments: args })
    return { refused: isError === true, ...structuredContent }
  }
  return {
    call,
    async lease (credential, args = {}) {
      const lease = await call('lease_credential', { credential, purpose: `e2e ${name}`, ...args })
      assert.ok(!lease.refused, `leasing ${credential}: ${JSON.stringify(lease.error)}`)
      if (lease.delivery === 'proxy') {
        assert.equal(lease.value, undefined)
        assert.ok(lease.use.api_key.length > 20, 'a handle is long')
        appendFileSync(`${home}/handles`, lease.use.api_key + '\n')
      }
      return lease
    },
    release: lease => call('release_lease', { lease_id: lease.lease_id }),
    close: () => client.close()
  }
}

// run runs a client of somebody else's: with an environment of its own, in a folder of its own, and with an end.
export function run (program, args, { env = {}, cwd = home, input = '', seconds = 30 } = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { cwd, env: { HOME: home, PATH: path, LANG: 'C.UTF-8', ...env }, stdio: 'pipe' })
    const late = setTimeout(() => child.kill('SIGKILL'), seconds * 1000)
    let out = ''
    let err = ''
    child.stdout.on('data', chunk => { out += chunk })
    child.stderr.on('data', chunk => { err += chunk })
    child.on('error', reject)
    child.on('close', (code, signal) => {
      clearTimeout(late)
      resolve({ code, signal, out, err, all: `exit ${code ?? signal}\n${out}${err}` })
    })
    child.stdin.on('error', () => {})
    child.stdin.end(input)
  })
}

// ok runs a client that has to succeed. What it shows must hold no true key, unless it was given one (direct).
export async function ok (program, args, options) {
  const got = await run(program, args, options)
  assert.equal(got.code, 0, `${program} ${args.join(' ')}: ${got.all}`)
  if (!options?.direct) hidden(got.all)
  return got
}

// hidden wants none of the true keys in a text, in the forms in which they were ever seen to come back.
export function hidden (text) {
  for (const [service, key] of Object.entries(keys)) {
    for (const form of forms(key)) assert.ok(!text.includes(form), `the key of ${service} came back: ${text.slice(0, 2000).replaceAll(key, '[THE KEY]')}`)
  }
}

// forms are how a key can look: as it is, in hex, and in base64 at each of its three phases.
export function forms (key) {
  const bytes = Buffer.from(key)
  const base64 = [0, 1, 2].map(phase => {
    const text = Buffer.concat([Buffer.alloc(phase), bytes]).toString('base64').replace(/=+$/, '')
    return text.slice(phase === 0 ? 0 : phase + 1, -2)
  })
  const hex = bytes.toString('hex')
  return [key, hex, hex.toUpperCase(), ...base64, ...base64.map(text => text.replaceAll('+', '-').replaceAll('/', '_'))]
}

// verdicts are what the far side thought of the requests that came since.
export function verdicts (since = 0) {
  return readFileSync(`${far}/verdicts.jsonl`, 'utf8').split('\n').filter(Boolean).map(line => JSON.parse(line)).filter(v => v.at >= since)
}

// onlyTrue wants that the service was asked since, and each time with the true key.
export function onlyTrue (service, since) {
  const asked = verdicts(since).filter(v => v.service === service && !v.cut)
  assert.ok(asked.some(v => v.ok), `${service} was never asked`)
  for (const v of asked) assert.ok(v.ok, `${service}: ${v.method} ${v.url}: ${v.why}`)
}

export const sleep = ms => new Promise(resolve => setTimeout(resolve, ms))
