// Codex borrows and hands back. Usage: codex.mjs stdio|http legacy|modern
import { codex } from './appserver.mjs'
import { lend, main } from './lend.mjs'

const { E2E_KEYLEASE: command, E2E_URL: url } = process.env
const [kind, era] = process.argv.slice(2)
const config = '[mcp_servers.keylease]\n' + {
  stdio: `command = "${command}"\nargs = ["mcp"]\n`,
  http: `url = "${url}/mcp"\nbearer_token_env_var = "E2E_TOKEN"\n`
}[kind]

main(async () => {
  const server = await codex(config, [era === 'modern' ? '--enable' : '--disable', 'mcp_2026_07_28'])
  await lend(server.call, `e2e codex ${kind} ${era}`)
  await server.end()
})
