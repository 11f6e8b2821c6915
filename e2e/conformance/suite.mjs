// Runs the official conformance suite against CONFORMANCE_URL and prints the figures on the last line.
//   suite.mjs fixtures PACKAGE REVISION BASELINE    what the revision wants of a server; fails on any failure that the
//                                                   baseline does not name, and on any that it names and that is gone
//   suite.mjs real PACKAGE REVISION SCENARIO…       these scenarios, all of which must pass
// PACKAGE is a name in package.json: both versions of the suite are installed, side by side.
import { spawn } from 'node:child_process'
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'

const [mode, name, revision, ...rest] = process.argv.slice(2)
const here = createRequire(join(process.cwd(), 'package.json'))
const manifest = here.resolve(`${name}/package.json`)
const { bin, version } = here(manifest)
const knowsRequirements = !version.startsWith('0.1.')

// suite runs it once and gives its exit code and every check by scenario.
async function suite (...args) {
  const out = await mkdtemp(join(tmpdir(), 'conformance-'))
  const child = spawn(process.execPath, [join(dirname(manifest), bin.conformance), 'server',
    '--url', process.env.CONFORMANCE_URL, '--output-dir', out, ...args], { stdio: ['ignore', 'inherit', 'inherit'] })
  const code = await new Promise(resolve => child.on('close', resolve))
  const results = {}
  for (const folder of await readdir(out)) {
    const scenario = folder.replace(/^server-/, '').replace(/-\d{4}-\d\d-\d\dT[\d-]+Z$/, '')
    results[scenario] = JSON.parse(await readFile(join(out, folder, 'checks.json')))
  }
  await rm(out, { recursive: true })
  return { code, results }
}

// fixtureless is a check that wants a tool that the real server rightly does not have.
const fixtureless = check => mode === 'real' && /does not list the diagnostic tool/.test(check.errorMessage ?? '')
const failed = checks => checks.filter(check => check.status === 'FAILURE' && !fixtureless(check))
const passed = checks => checks.filter(check => check.status === 'SUCCESS')

// figures counts the scenarios of results that are in scored, and their checks.
function figures (results, scored) {
  const scenarios = scored.map(scenario => results[scenario] ?? [{ id: scenario, status: 'FAILURE' }])
  const checks = scenarios.flat()
  const beyond = checks.filter(fixtureless).length
  return `${scenarios.filter(s => failed(s).length === 0).length} of ${scored.length} scenarios, ` +
    `${passed(checks).length} of ${passed(checks).length + failed(checks).length} checks passed` +
    (beyond > 0 ? `; ${beyond} more want a fixture` : '')
}

async function fixtures (baseline) {
  const scope = knowsRequirements ? ['--requirements', revision] : ['--suite', 'active']
  let { code, results } = await suite(...scope, '--expected-failures', baseline)
  if (code !== 0) {
    console.log('\nonce more: the suite waits half a second for some answers, which a busy machine may not keep\n')
    ;({ code, results } = await suite(...scope, '--expected-failures', baseline))
  }
  let scored = Object.keys(results)
  let beside = ''
  if (knowsRequirements) {
    const yaml = createRequire(manifest)('yaml')
    const wanted = yaml.parse(await readFile(join(dirname(manifest), 'requirements', `${revision}.yaml`), 'utf8'))
    const others = scored.filter(scenario => !wanted.server.includes(scenario))
    const good = others.filter(scenario => failed(results[scenario]).length === 0 && passed(results[scenario]).length > 0)
    if (others.length > 0) beside = `; beside what is scored: ${good.join(', ') || 'none'} pass${good.length === 1 ? 'es' : ''}`
    scored = wanted.server
  }
  if (scored.length < 30) throw new Error(`only ${scored.length} scenarios: the suite was not run`)
  console.log(`fixtures, ${revision} by suite ${version}: ${figures(results, scored)}${beside}`)
  return code
}

async function real (scenarios) {
  const all = {}
  let code = 0
  for (const scenario of scenarios) {
    const one = await suite('--scenario', scenario, '--spec-version', revision)
    Object.assign(all, one.results)
    const checks = one.results[scenario] ?? []
    if (failed(checks).length > 0 || passed(checks).length === 0) {
      console.log(`${scenario} does not pass`)
      code = 1
    }
  }
  console.log(`the three tools, ${revision} by suite ${version}: ${figures(all, scenarios)}`)
  return code
}

process.exitCode = await (mode === 'real' ? real(rest) : fixtures(rest[0]))
