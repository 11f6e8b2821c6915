// MCP Inspector's CLI: each call is a process and a connection of its own, so that the release here comes from the
// next session of the same holder. Usage: inspector.mjs stdio|http|sse legacy|modern
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { lend, main } from './lend.mjs'

const { E2E_KEYLEASE: command, E2E_URL: url, E2E_TOKEN: token } = process.env
const [kind, era] = process.argv.slice(2)
const remote = path => [`${url}${path}`, '--header', `Authorization: Bearer ${token}`, '--stored-auth-only']
const target = { stdio: [command, 'mcp'], http: remote('/mcp'), sse: remote('/sse') }[kind]

main(() => lend(async (tool, args) => {
  const { stdout } = await promisify(execFile)('mcp-inspector', ['--cli', ...target, '--transport', kind,
    '--protocol-era', era, '--method', 'tools/call', '--tool-name', tool, '--tool-args-json', JSON.stringify(args),
    '--format', 'json', '--quiet'])
  return JSON.parse(stdout).result
}, `e2e inspector ${kind} ${era}`))
