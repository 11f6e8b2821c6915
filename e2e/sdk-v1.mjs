// TypeScript SDK v1, which knows the handshake only. Usage: sdk-v1.mjs stdio|http|sse
import assert from 'node:assert/strict'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { SSEClientTransport } from '@modelcontextprotocol/sdk/client/sse.js'
import { StdioClientTransport } from '@modelcontextprotocol/sdk/client/stdio.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import { lend, main } from './lend.mjs'

const { E2E_KEYLEASE: command, E2E_URL: url, E2E_TOKEN: token } = process.env
const [kind] = process.argv.slice(2)
const requestInit = { headers: { Authorization: `Bearer ${token}` } }

main(async () => {
  const transport = {
    stdio: () => new StdioClientTransport({ command, args: ['mcp'] }),
    http: () => new StreamableHTTPClientTransport(new URL(`${url}/mcp`), { requestInit }),
    sse: () => new SSEClientTransport(new URL(`${url}/sse`), { requestInit })
  }[kind]()
  const client = new Client({ name: 'ts-sdk-v1', version: '1' })
  let negotiated
  const told = transport.setProtocolVersion?.bind(transport)
  transport.setProtocolVersion = version => { negotiated = version; told?.(version) }
  await client.connect(transport)
  assert.equal(negotiated, '2025-11-25')
  await client.listTools() // the client checks answers against the output schemas it has seen
  const no = await client.callTool({ name: 'lease_credential', arguments: { credential: 'no-such-credential' } })
  assert.equal(no.structuredContent.error.code, 'not_available') // it holds a refusal too against the output schema
  await lend((name, args) => client.callTool({ name, arguments: args }), `e2e ts-sdk-v1 ${kind}`)
  if (kind === 'http') await transport.terminateSession()
  await client.close()
})
