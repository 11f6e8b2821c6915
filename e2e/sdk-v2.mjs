// TypeScript SDK v2, which speaks both eras. Usage: sdk-v2.mjs stdio|http|sse legacy|modern|auto
import assert from 'node:assert/strict'
import { Client, SSEClientTransport, StreamableHTTPClientTransport } from '@modelcontextprotocol/client'
import { StdioClientTransport } from '@modelcontextprotocol/client/stdio'
import { lend, main } from './lend.mjs'

const { E2E_KEYLEASE: command, E2E_URL: url, E2E_TOKEN: token } = process.env
const [kind, era] = process.argv.slice(2)
const requestInit = { headers: { Authorization: `Bearer ${token}` } }

main(async () => {
  const transport = {
    stdio: () => new StdioClientTransport({ command, args: ['mcp'] }),
    http: () => new StreamableHTTPClientTransport(new URL(`${url}/mcp`), { requestInit }),
    sse: () => new SSEClientTransport(new URL(`${url}/sse`), { requestInit })
  }[kind]()
  const mode = era === 'modern' ? { pin: '2026-07-28' } : era
  const client = new Client({ name: 'ts-sdk-v2', version: '1' }, { versionNegotiation: { mode } })
  await client.connect(transport)
  // Left to choose, the client must end up on the newest era the transport has: SSE has the handshake only.
  const modern = era === 'modern' || (era === 'auto' && kind !== 'sse')
  assert.equal(client.getNegotiatedProtocolVersion(), modern ? '2026-07-28' : '2025-11-25')
  await client.listTools()
  await lend((name, args) => client.callTool({ name, arguments: args }), `e2e ts-sdk-v2 ${kind} ${era}`)
  if (kind === 'http' && !modern) await transport.terminateSession()
  await client.close()
})
