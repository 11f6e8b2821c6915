// Codex's app-server: the program behind its editors, driven over its JSON-RPC on stdio. Tool calls go out exactly as
// they do in a session, without a model.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import { createInterface } from 'node:readline'

const { HOME } = process.env

// codex starts one with this configuration. asked(params) answers its mcpServer/elicitation/request; heard sees each
// message of either direction. It returns call(tool, arguments), which resolves to an MCP CallToolResult, and two ways to
// end it: end(), as an editor does, which takes it seconds, and drop(), which waits for nothing.
export async function codex (config, features, { asked, heard = () => {} } = {}) {
  const folder = `${HOME}/.codex-${process.pid}` // others may run beside it
  mkdirSync(folder, { recursive: true })
  writeFileSync(`${folder}/config.toml`, config)
  const server = spawn('codex', ['app-server', '--strict-config', ...features, '--disable', 'plugins'],
    { stdio: ['pipe', 'pipe', 'inherit'], env: { ...process.env, CODEX_HOME: folder } })
  const ended = new Promise(resolve => server.once('exit', resolve))
  const waiting = new Map()
  const send = message => {
    heard(message)
    server.stdin.write(JSON.stringify(message) + '\n')
  }
  createInterface({ input: server.stdout }).on('line', line => {
    const message = JSON.parse(line)
    heard(message)
    const { id, method, params, result, error } = message
    if (method === 'mcpServer/elicitation/request') {
      assert.ok(asked, 'it has no cause to ask anything of us')
      Promise.resolve(asked(params)).then(result => result && send({ id, result }))
      return
    }
    if (method !== undefined) return // its notifications
    const { resolve, reject } = waiting.get(id)
    error ? reject(new Error(JSON.stringify(error))) : resolve(result)
  })
  const request = (method, params) => new Promise((resolve, reject) => {
    const id = waiting.size + 1
    waiting.set(id, { resolve, reject })
    ended.then(code => reject(new Error(`app-server ended with ${code}`)))
    send({ id, method, params })
  })

  await request('initialize', { clientInfo: { name: 'keylease-e2e', title: null, version: '1' }, capabilities: null })
  send({ method: 'initialized' })
  const { thread } = await request('thread/start', { ephemeral: true, cwd: HOME })
  return {
    call: (tool, args) => request('mcpServer/tool/call', { threadId: thread.id, server: 'keylease', tool, arguments: args }),
    async end () {
      server.stdin.end()
      assert.equal(await ended, 0)
    },
    drop: () => server.kill()
  }
}
