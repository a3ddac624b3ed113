/**
 * Text in the language of the page. English is the source: its text is the key
 * of the translations in zh-CN.js, which is loaded only where it is spoken.
 */
export const chinese = document.documentElement.lang === 'zh-CN'
const words = chinese ? (await import('./zh-CN.js')).default : {}

/**
 * English text in the page's language. Each %s, or %[2]s where a translation
 * has another order, is the next argument.
 */
export function t(english, ...args) {
  let next = 0
  return (words[english] ?? english).replace(/%(?:\[(\d)\])?s/g, (_, n) => args[n ? n - 1 : next++])
}
