// What the second half of a run needs: keys that are fakes made for this run, each with the canary in it by which the run
// is searched afterwards; a git repository; and what an operator would write for keylease.
//   far.mjs keys FOLDER          before upstream.mjs
//   far.mjs home FOLDER HOME     after it: FOLDER/seed.yaml, and keylease.yaml and policy.yaml in HOME
import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'

const [what, folder, home] = process.argv.slice(2)

const prefixes = {
  openai: 'sk-proj-', anthropic: 'sk-ant-', github: 'ghp_', npm: 'npm_', stripe: 'sk_test_', gitlab: 'glpat-', huggingface: 'hf_', slack: 'xoxb-',
  house: 'house-', value: 'value-', asked: 'asked-', aws: 'aws-', rotated: 'rotated-'
}

function makeKeys () {
  const canary = 'FakeE2e' + randomBytes(12).toString('hex')
  const keys = Object.fromEntries(Object.entries(prefixes).map(([name, prefix]) => [name, prefix + canary + randomBytes(4).toString('hex')]))
  writeFileSync(`${folder}/canary`, canary)
  writeFileSync(`${folder}/keys.json`, JSON.stringify(keys))
  writeFileSync(`${folder}/house-key`, keys.house)
}

function makeRepository () {
  const git = (...args) => execFileSync('git', args, {
    stdio: 'pipe',
    env: {
      PATH: process.env.PATH, HOME: folder, GIT_CONFIG_NOSYSTEM: '1', GIT_AUTHOR_NAME: 'e2e', GIT_AUTHOR_EMAIL: 'e2e@example.com', GIT_COMMITTER_NAME: 'e2e', GIT_COMMITTER_EMAIL: 'e2e@example.com'
    }
  })
  mkdirSync(`${folder}/tree`, { recursive: true })
  writeFileSync(`${folder}/tree/README`, 'a fake repository\n')
  git('-C', `${folder}/tree`, 'init', '-q', '-b', 'main')
  git('-C', `${folder}/tree`, 'add', 'README')
  git('-C', `${folder}/tree`, 'commit', '-q', '-m', 'the only one')
  git('clone', '-q', '--bare', `${folder}/tree`, `${folder}/repositories/e2e/tiny.git`)
}

function makeHome () {
  const keys = JSON.parse(readFileSync(`${folder}/keys.json`))
  const origins = JSON.parse(readFileSync(`${folder}/origins.json`))
  const credential = (name, value, more = {}) => ({ name: `${name}-e2e`, type: 'api-key', value, metadata: { environment: 'development' }, policy: { defaultLeaseTTL: '15m', maxLeaseTTL: '4h' }, ...more })
  // Where the machine lets the far side have the names that services really have, a credential says the service's name alone.
  const at = service => process.env.E2E_PUBLIC ? { service } : { service, url: origins[service] }
  const catalogued = ['openai', 'anthropic', 'github', 'npm', 'stripe', 'gitlab', 'huggingface', 'slack']
  const show = ['/bin/sh', '-c', `exec curl -sSf -H "X-House-Key: $HOUSE_KEY" ${origins.house}/echo`]
  const credentials = [
    ...catalogued.map(name => credential(name, keys[name], { upstream: at(name) })),
    credential('house', keys.house, { upstream: { url: origins.house, header: 'X-House-Key: {value}', allow: ['GET,POST /echo', ...['echo/*', 'pieces', 'cookie', 'redirect', 'forever', 'reset', 'hang'].map(path => `GET /${path}`)] } }),
    credential('exec', keys.house, { expose: { env: 'HOUSE_KEY', commands: { 'whoami-at-the-house': show } } }),
    credential('git', keys.github, { expose: { env: 'GH_TOKEN' }, metadata: { environment: 'development', service: 'github' } }),
    credential('value', keys.value),
    credential('asked', keys.asked),
    credential('aws', keys.aws, { expose: { env: 'AWS_SECRET_ACCESS_KEY' }, metadata: { environment: 'development', accessKeyId: 'FAKE-E2E-KEY-ID' } })
  ]
  writeFileSync(`${folder}/seed.yaml`, JSON.stringify({ credentials }), { mode: 0o600 })
  const config = `${home}/.config/keylease`
  mkdirSync(config, { recursive: true, mode: 0o700 })
  writeFileSync(`${config}/keylease.yaml`, JSON.stringify({ log: { level: 'debug' }, proxy: { ca: `${folder}/ca.pem` } }), { mode: 0o600 })
  writeFileSync(`${config}/policy.yaml`, JSON.stringify({
    version: 1,
    limits: { leaseRate: 0 },
    rules: [
      { name: 'a person is asked', identities: ['*'], credentials: ['asked-*'], approval: 'user' },
      { name: 'everybody', identities: ['*'], credentials: ['*'] }
    ]
  }), { mode: 0o600 })
}

if (what === 'keys') {
  makeKeys()
  makeRepository()
} else makeHome()
