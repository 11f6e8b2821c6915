// Makes what upstream.mjs needs: keys that are fakes made for this run, each with the canary in it by which the run is
// searched afterwards, and a git repository. Usage: far.mjs FOLDER
import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdirSync, writeFileSync } from 'node:fs'

const folder = process.argv[2]
const canary = 'FakeE2e' + randomBytes(12).toString('hex')
const prefixes = {
  openai: 'sk-proj-', anthropic: 'sk-ant-', github: 'ghp_', npm: 'npm_', stripe: 'sk_test_', gitlab: 'glpat-', huggingface: 'hf_', slack: 'xoxb-',
  house: 'house-', value: 'value-', exec: 'exec-', asked: 'asked-', aws: 'aws-', rotated: 'rotated-'
}
writeFileSync(`${folder}/canary`, canary)
writeFileSync(`${folder}/keys.json`, JSON.stringify(Object.fromEntries(
  Object.entries(prefixes).map(([name, prefix]) => [name, prefix + canary + randomBytes(4).toString('hex')]))))

const git = (...args) => execFileSync('git', args, {
  stdio: 'pipe',
  env: {
    PATH: process.env.PATH, HOME: folder, GIT_CONFIG_NOSYSTEM: '1', GIT_AUTHOR_NAME: 'e2e', GIT_AUTHOR_EMAIL: 'e2e@example.com', GIT_COMMITTER_NAME: 'e2e', GIT_COMMITTER_EMAIL: 'e2e@example.com'
  }
})
mkdirSync(`${folder}/work`, { recursive: true })
writeFileSync(`${folder}/work/README`, 'a fake repository\n')
git('-C', `${folder}/work`, 'init', '-q', '-b', 'main')
git('-C', `${folder}/work`, 'add', 'README')
git('-C', `${folder}/work`, 'commit', '-q', '-m', 'the only one')
git('clone', '-q', '--bare', `${folder}/work`, `${folder}/repositories/e2e/tiny.git`)
