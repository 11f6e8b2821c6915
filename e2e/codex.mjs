// Codex's app-server: the program behind its editors, driven over its JSON-RPC on stdio; tool calls go out exactly as
// they do in a session, without a model. Usage: codex.mjs stdio|http legacy|modern
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { lend, main } from './lend.mjs'

const { HOME, E2E_KEYLEASE: command, E2E_URL: url } = process.env
const [kind, era] = process.argv.slice(2)

mkdirSync(`${HOME}/.codex`, { recursive: true })
writeFileSync(`${HOME}/.codex/config.toml`, '[mcp_servers.keylease]\n' + {
  stdio: `command = "${command}"\nargs = ["mcp"]\n`,
  http: `url = "${url}/mcp"\nbearer_token_env_var = "E2E_TOKEN"\n`
}[kind])

main(async () => {
  const features = [era === 'modern' ? '--enable' : '--disable', 'mcp_2026_07_28', '--disable', 'plugins']
  const server = spawn('codex', ['app-server', '--strict-config', ...features], { stdio: ['pipe', 'pipe', 'inherit'] })
  const ended = new Promise(resolve => server.once('exit', resolve))
  const waiting = new Map()
  createInterface({ input: server.stdout }).on('line', line => {
    const { id, method, result, error } = JSON.parse(line)
    if (method !== undefined) return // its notifications; it has no cause to ask anything of us
    const { resolve, reject } = waiting.get(id)
    error ? reject(new Error(JSON.stringify(error))) : resolve(result)
  })
  const send = message => server.stdin.write(JSON.stringify(message) + '\n')
  const request = (method, params) => new Promise((resolve, reject) => {
    const id = waiting.size + 1
    waiting.set(id, { resolve, reject })
    ended.then(code => reject(new Error(`app-server ended with ${code}`)))
    send({ id, method, params })
  })

  await request('initialize', { clientInfo: { name: 'keylease-e2e', title: null, version: '1' }, capabilities: null })
  send({ method: 'initialized' })
  const { thread } = await request('thread/start', { ephemeral: true, cwd: HOME })
  await lend((tool, args) => request('mcpServer/tool/call',
    { threadId: thread.id, server: 'keylease', tool, arguments: args }), `e2e codex ${kind} ${era}`)
  server.stdin.end()
  assert.equal(await ended, 0)
})
