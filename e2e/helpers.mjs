// Tools that ask a program for a key: git by its credential protocol, the AWS tools by credential_process.
import assert from 'node:assert/strict'
import { appendFileSync, mkdtempSync, readFileSync, writeFileSync } from 'node:fs'
import { command, far, hidden, home, keys, ok, onlyTrue, run } from './borrow.mjs'
import { main } from './lend.mjs'

const who = ['--as', 'e2e-helper']

main(async () => {
  // git goes to the service itself; the key comes from keylease when the service asks.
  const folder = mkdtempSync(`${home}/git-`)
  const helper = `!${command} helper git --credential git-e2e ${who.join(' ')}`
  writeFileSync(`${folder}/config`, `[credential "https://github.com"]\n\thelper =\n\thelper = "${helper}"\n[http]\n\tsslCAInfo = ${far}/ca.pem\n`)
  const env = { GIT_CONFIG_GLOBAL: `${folder}/config`, GIT_CONFIG_NOSYSTEM: '1', GIT_TERMINAL_PROMPT: '0' }
  const since = Date.now()
  await ok('git', ['clone', '-q', 'https://github.com/e2e/tiny', `${folder}/tiny`], { env })
  assert.equal(readFileSync(`${folder}/tiny/README`, 'utf8'), 'a fake repository\n')
  assert.ok(!readFileSync(`${folder}/tiny/.git/config`, 'utf8').includes(keys.github))
  await ok('git', ['-C', `${folder}/tiny`, 'fetch', '-q'], { env })
  assert.throws(() => onlyTrue('github', since), /no key/) // git asks without at first
  // No other server gets it.
  const elsewhere = await run(command, ['helper', 'git', '--credential', 'git-e2e', ...who, 'get'], { input: 'protocol=https\nhost=elsewhere.example\n\n' })
  hidden(elsewhere.all)
  assert.doesNotMatch(elsewhere.out, /password/)

  const aws = await run(command, ['helper', 'aws', '--credential', 'aws-e2e', ...who])
  assert.equal(aws.code, 0, aws.err)
  const { Version, AccessKeyId, SecretAccessKey, Expiration } = JSON.parse(aws.out)
  assert.deepEqual({ Version, AccessKeyId, SecretAccessKey }, { Version: 1, AccessKeyId: 'FAKE-E2E-KEY-ID', SecretAccessKey: keys.aws })
  assert.ok(Date.parse(Expiration) > Date.now())
  hidden(aws.err)

  // Frozen, nobody is answered.
  await ok(command, ['freeze'])
  try {
    for (const [args, input] of [[['helper', 'aws', '--credential', 'aws-e2e', ...who]], [['helper', 'git', '--credential', 'git-e2e', ...who, 'get'], 'protocol=https\nhost=github.com\n\n']]) {
      const got = await run(command, args, { input })
      hidden(got.all)
      appendFileSync(`${home}/said`, got.all + '\n')
    }
    const got = await run('git', ['-C', `${folder}/tiny`, 'fetch', '-q'], { env })
    assert.notEqual(got.code, 0)
    hidden(got.all)
  } finally {
    await ok(command, ['thaw'])
  }
  await ok('git', ['-C', `${folder}/tiny`, 'fetch', '-q'], { env })
})
